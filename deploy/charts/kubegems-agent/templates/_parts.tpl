{{- define "kubegems.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- end }}
{{- define "kubegems.ports" -}}
[{{- range $index, $port := . }}{{ if $index }}, {{ end }}{protocol: TCP, port: {{ int $port }}}{{ end -}}]
{{- end }}
