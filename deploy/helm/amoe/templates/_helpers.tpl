{{/* Names and labels. */}}

{{- define "amoe.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters leave room for `-attention-` and a pod's number. */}}
{{- define "amoe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "amoe.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "amoe.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of a role. Takes `root` and `role`. */}}
{{- define "amoe.selector" -}}
app.kubernetes.io/name: {{ include "amoe.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{/* Labels of pods, without versions: what does not change for a pod must not restart it. Takes `root` and `role`. */}}
{{- define "amoe.podLabels" -}}
{{ include "amoe.selector" . }}
app.kubernetes.io/part-of: amoe
{{- end -}}

{{/* Takes `root` and `role`. */}}
{{- define "amoe.labels" -}}
{{ include "amoe.podLabels" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "amoe.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* The program of a role, which its configuration file is named after, too. */}}
{{- define "amoe.program" -}}
{{ get (dict "gateway" "gateway" "coordinator" "coordinator" "attention" "attention-node" "expert" "expert-node") . }}
{{- end -}}

{{/* The port that a role serves on. */}}
{{- define "amoe.port" -}}
{{ get (dict "gateway" "8000" "coordinator" "7400" "attention" "7500" "expert" "7600") . }}
{{- end -}}

{{/* The kubelet's patience: the pause, the drain, and a little for the exit itself. */}}
{{- define "amoe.grace" -}}
{{ add (int .Values.shutdown.preStopSeconds) (int .Values.shutdown.drainSeconds) 5 }}
{{- end -}}

{{- define "amoe.etcdEndpoints" -}}
{{- if .Values.etcd.enabled -}}
{{- $name := printf "%s-etcd" (include "amoe.fullname" .) -}}
{{- $endpoints := list -}}
{{- range $member := until (int .Values.etcd.replicas) -}}
{{- $endpoints = append $endpoints (printf "http://%s-%d.%s:2379" $name $member $name) -}}
{{- end -}}
{{- toJson $endpoints -}}
{{- else -}}
{{- toJson (required "etcd.endpoints: expected the state store's addresses, since etcd.enabled is false" (.Values.etcd.endpoints | default nil)) -}}
{{- end -}}
{{- end -}}

{{/* Whether processes prove to each other who they are: "yes" or nothing. */}}
{{- define "amoe.tls" -}}
{{- $given := 0 -}}
{{- range $secret := .Values.tls.secrets -}}{{- if $secret -}}{{- $given = add1 $given -}}{{- end -}}{{- end -}}
{{- if eq (int $given) 4 -}}
yes
{{- else if gt (int $given) 0 -}}
{{- fail "tls.secrets: expected a secret for each of the four roles, or for none" -}}
{{- else if .Values.tls.admin -}}
{{- fail "tls.admin: expected tls.secrets, too" -}}
{{- end -}}
{{- end -}}

{{/* Secrets of a role: volume → (secret, where it is mounted), as JSON. Takes `root` and `role`. */}}
{{- define "amoe.secrets" -}}
{{- $values := .root.Values -}}
{{- $secrets := dict -}}
{{- if include "amoe.tls" .root -}}
{{- $_ := set $secrets "certs" (dict "secret" (get $values.tls.secrets .role) "path" "/certs") -}}
{{- end -}}
{{- if and (eq .role "gateway") $values.tls.publicSecret -}}
{{- $_ := set $secrets "public-certs" (dict "secret" $values.tls.publicSecret "path" "/public-certs") -}}
{{- end -}}
{{- if and (eq .role "coordinator") $values.etcd.tls.secret -}}
{{- $_ := set $secrets "etcd-certs" (dict "secret" $values.etcd.tls.secret "path" "/etcd-certs") -}}
{{- end -}}
{{- if $values.keys.secret -}}
{{- $_ := set $secrets "keys" (dict "secret" $values.keys.secret "path" "/keys") -}}
{{- end -}}
{{- toJson $secrets -}}
{{- end -}}
