{{/* The pod of a role. All four are alike but for the program, its port and the names it goes by. */}}

{{/* Takes `root` and `role`. */}}
{{- define "amoe.pod" -}}
{{- $root := .root -}}
{{- $role := .role -}}
{{- $values := $root.Values -}}
{{- $own := get $values $role -}}
{{- $program := include "amoe.program" $role -}}
{{- $grace := include "amoe.grace" $root -}}
{{- $secrets := include "amoe.secrets" . | fromJson -}}
metadata:
  labels: {{- include "amoe.podLabels" . | nindent 4 }}
  annotations:
    # A pod reads its configuration once, so a new one is a new pod.
    checksum/config: {{ include "amoe.config" . | sha256sum }}
    {{- if $values.metrics.annotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: "9464"
    prometheus.io/path: /metrics
    {{- if $values.tls.admin }}
    prometheus.io/scheme: https
    {{- end }}
    {{- end }}
    {{- with $own.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "amoe.fullname" $root }}
  automountServiceAccountToken: false
  # Variables like AMOE_GATEWAY_PORT would only confuse.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $grace }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $own.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $own.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $own.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $own.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "amoe.selector" . | nindent 10 }}
  securityContext: {{- include "amoe.podSecurity" $root | nindent 4 }}
  containers:
    - name: {{ $program }}
      image: {{ include "amoe.image" $root | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [/bin/{{ $program }}]
      args: [--config, /etc/amoe/{{ $program }}.toml]
      env: {{- include "amoe.env" . | nindent 8 }}
        {{- with $own.extraEnv }}{{ toYaml . | nindent 8 }}{{ end }}
      ports:
        - {name: {{ $role }}, containerPort: {{ include "amoe.port" $role }}, protocol: TCP}
        - {name: admin, containerPort: 9464, protocol: TCP}
      {{- include "amoe.probes" . | nindent 6 }}
      {{- include "amoe.lifecycle" . | nindent 6 }}
      {{- with $own.resources }}
      resources: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext: {{- include "amoe.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/amoe/{{ $program }}.toml, subPath: {{ $program }}.toml, readOnly: true}
        {{- if and $values.model.volume (ne $role "coordinator") }}
        - name: model
          mountPath: {{ $values.model.path }}
          readOnly: true
          {{- with $values.model.subPath }}
          subPath: {{ . }}
          {{- end }}
        {{- end }}
        {{- range $volume, $from := $secrets }}
        - {name: {{ $volume }}, mountPath: {{ $from.path }}, readOnly: true}
        {{- end }}
        {{- with $own.extraVolumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "amoe.fullname" $root }}-{{ $role }}
    {{- if and $values.model.volume (ne $role "coordinator") }}
    - name: model
      {{- toYaml $values.model.volume | nindent 6 }}
    {{- end }}
    {{- range $volume, $from := $secrets }}
    - name: {{ $volume }}
      secret: {secretName: {{ $from.secret }}, defaultMode: 0440}
    {{- end }}
    {{- with $own.extraVolumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end -}}

{{- define "amoe.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "amoe.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Names and addresses that only the pod knows, over those of the configuration file. Addresses are the pods' own: no node
waits for DNS, and a pod that came back says where it is now. */}}
{{- define "amoe.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{ if eq .role "gateway" -}}
- {name: AMOE_CLUSTER__NAME, value: $(POD_NAME)}
{{- else if eq .role "coordinator" -}}
- {name: AMOE_CONTROL__ADVERTISE, value: "$(POD_IP):7400"}
{{- else -}}
- {name: AMOE_NODE__NAME, value: $(POD_NAME)}
- {name: AMOE_NODE__ADVERTISE, value: "$(POD_IP):{{ include "amoe.port" .role }}"}
{{- end }}
{{- end -}}

{{/* Alive is not ready: a node that waits for its experts must not be restarted for it. And gateways that wait for nodes to
recover hold their clients' requests; were they to leave their service at once, all together, clients would be refused. */}}
{{- define "amoe.probes" -}}
{{- $scheme := ternary ", scheme: HTTPS" "" .root.Values.tls.admin -}}
startupProbe:
  httpGet: {path: /livez, port: admin{{ $scheme }}}
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /livez, port: admin{{ $scheme }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin{{ $scheme }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ ternary 15 2 (eq .role "gateway") }}
{{- end -}}

{{/* Only gateways and coordinators stand behind a service; nodes say themselves that they leave. */}}
{{- define "amoe.lifecycle" -}}
{{- $own := get .root.Values .role -}}
{{- $seconds := int .root.Values.shutdown.preStopSeconds -}}
{{- $service := has .role (list "gateway" "coordinator") -}}
{{- if $own.lifecycle -}}
lifecycle: {{- toYaml $own.lifecycle | nindent 2 }}
{{- else if and $service $seconds (semverCompare ">=1.30-0" .root.Capabilities.KubeVersion.Version) -}}
lifecycle:
  preStop:
    sleep: {seconds: {{ $seconds }}}
{{- end -}}
{{- end -}}
