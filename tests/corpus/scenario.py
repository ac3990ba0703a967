"""What the recorded clients are asked to do: each verb of kubectl that talks to an API server, and a release of helm from birth to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.corpus.corpus import NAMESPACE

_WATCH_SECONDS = 3.0
_COMMAND_SECONDS = 60.0
_OBJECTS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: web}}
data: {colour: COLOUR}
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, protocol: TCP, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "example/web:1", resources: {limits: {cpu: 10m, memory: 16Mi}}}]}
"""
_POD = """
apiVersion: v1
kind: Pod
metadata: {name: solo, labels: {app: solo}}
spec: {containers: [{name: solo, image: "example/solo:1"}]}
"""
_CHART = "apiVersion: v2\nname: tiny\nversion: 0.1.0\n"
_TEMPLATE = """
apiVersion: v1
kind: ConfigMap
metadata: {name: "{{ .Release.Name }}-tiny"}
data: {colour: "{{ .Values.colour }}"}
---
apiVersion: v1
kind: Service
metadata: {name: "{{ .Release.Name }}-tiny"}
spec: {selector: {app: tiny}, ports: [{name: http, port: 80, protocol: TCP}]}
"""
_KUBECTL = """
version
api-resources
api-versions
cluster-info
explain pods.spec
get namespaces
get namespace corpus-0 -o yaml
auth can-i create pods
auth can-i --list
auth whoami
apply -f OBJECTS
apply -f OBJECTS
apply -f CHANGED
apply --server-side --force-conflicts -f OBJECTS
apply -f CHANGED --dry-run=server
diff -f OBJECTS
create -f POD
wait --for=condition=Ready pod/solo --timeout=30s
rollout status deployment/web --timeout=30s
get pods
get pods -o wide
get pods -o json
get pods -o name --selector app=solo
get pods --field-selector metadata.name=solo --show-labels
get pods --chunk-size=1
get all
get deployment,service,configmap -o yaml
get pod solo -o jsonpath={.metadata.name}
get pod missing
get nonsense
get events
get --raw /healthz
get --raw /version
WATCH get pods --watch
WATCH get pods --watch-only -o json
WATCH get deployments --watch -o name
describe pod solo
describe deployment web
describe service web
create configmap made --from-literal=a=b
create secret generic made --from-literal=a=b
create serviceaccount made
create role made --verb=get --resource=pods
create rolebinding made --role=made --serviceaccount=corpus-0:made
create quota made --hard=pods=50
create job made --image=example/job:1
create cronjob made --image=example/job:1 --schedule=0_0_1_1_*
create ingress made --rule=a.example/b=web:80
create token made
create deployment other --image=example/web:1
run extra --image=example/web:1
expose deployment other --port=80
autoscale deployment other --min=1 --max=2
label pod solo tier=front
label pod solo tier-
annotate pod solo note=short
patch configmap settings --type=merge -p {"data":{"shape":"round"}}
patch configmap settings --type=json -p [{"op":"remove","path":"/data/shape"}]
patch deployment web -p {"spec":{"paused":false}}
patch configmap settings --type=nonsense -p {}
scale deployment web --replicas=2
set image deployment/web web=example/web:2
set env deployment/web A=b
set resources deployment web --limits=cpu=20m
rollout history deployment/web
rollout undo deployment/web
rollout restart deployment/web
rollout pause deployment/web
rollout resume deployment/web
replace --force -f POD
replace -f OBJECTS
wait --for=condition=Ready pod/solo --timeout=30s
logs solo
logs solo --tail=1 --timestamps
WATCH logs solo --follow
WATCH exec solo -- true
WATCH attach solo
WATCH port-forward pod/solo 0:80
top pods
delete pod extra --wait=false
delete pod solo --grace-period=0 --force
delete deployment other --cascade=orphan
delete configmaps --selector app=web
delete -f OBJECTS --ignore-not-found --wait=false
delete job,cronjob,ingress,role,rolebinding,quota,secret,configmap,serviceaccount made
delete configmap missing
"""
_HELM = """
install first CHART --set colour=red
install first CHART
list
status first
upgrade first CHART --set colour=blue
upgrade --install second CHART --wait --timeout 30s
history first
get values first
get manifest first
rollback first 1
uninstall first
uninstall second
status first
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One command; `seconds` is where it is ended."""

    words: tuple[str, ...]
    seconds: float = _COMMAND_SECONDS


def kubeconfig(server: str) -> str:
    """A kubeconfig without credentials."""
    return (
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        f"clusters: [{{name: c, cluster: {{server: {server}}}}}]\n"
        f"contexts: [{{name: c, context: {{cluster: c, namespace: {NAMESPACE}, user: c}}}}]\nusers: [{{name: c}}]\n"
    )


def steps(home: Path, kubectl: str, helm: str) -> Iterator[Step]:
    """All commands, with the files that they need written to `home`."""
    files = {"OBJECTS": _file(home, "objects.yaml", _OBJECTS.replace("COLOUR", "red"))}
    files["CHANGED"] = _file(home, "changed.yaml", _OBJECTS.replace("COLOUR", "blue").replace("replicas: 1", "replicas: 3"))
    files["POD"], files["CHART"] = _file(home, "pod.yaml", _POD), str(home / "tiny")
    _file(home, "tiny/Chart.yaml", _CHART)
    _file(home, "tiny/values.yaml", "colour: grey\n")
    _file(home, "tiny/templates/all.yaml", _TEMPLATE)
    yield Step((kubectl, "create", "namespace", NAMESPACE))
    for program, commands in ((kubectl, _KUBECTL), (helm, _HELM if helm else "")):
        for line in filter(None, commands.splitlines()):
            watch, words = line.startswith("WATCH "), line.removeprefix("WATCH ").split(" ")
            words = [files.get(word, word.replace("0_0_1_1_*", "0 0 1 1 *")) for word in words]
            yield Step((program, *words), _WATCH_SECONDS if watch else _COMMAND_SECONDS)
    yield Step((kubectl, "delete", "namespace", NAMESPACE))


def _file(home: Path, name: str, text: str) -> str:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)
