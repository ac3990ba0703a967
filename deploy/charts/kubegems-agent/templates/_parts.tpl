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
{{- /* What the agent connects to at the hub: the ports of the addresses it is told, and those it learns with its certificate. */ -}}
{{- define "kubegems.hubPorts" -}}
{{- $hub := .Values.hub }}
{{- $ports := .Values.networkPolicy.agentPorts }}
{{- if not $hub.onePort }}
{{- $ports = concat $ports $hub.ports (list (regexFind "[0-9]+$" $hub.enrolmentAddress)) }}
{{- end }}
{{- range splitList "," $hub.edgeUrl }}
{{- with trim . }}
{{- $ports = append $ports (regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default "443") }}
{{- end }}
{{- end }}
{{- $texts := list }}
{{- range $ports }}
{{- $texts = append $texts (int . | toString) }}
{{- end }}
{{- include "kubegems.ports" ($texts | uniq | sortAlpha) }}
{{- end }}
