{{/* Names begin with the name of the release; "tokencast" is not repeated. */}}
{{- define "tokencast.name" -}}
{{- if contains "tokencast" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-tokencast" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Arguments: a list of the root context and the component. */}}
{{- define "tokencast.selector" -}}
app.kubernetes.io/name: tokencast
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "tokencast.labels" -}}
{{ include "tokencast.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{- define "tokencast.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What the pods of gateways and workers have in common. */}}
{{- define "tokencast.pod" -}}
{{- $root := index . 0 }}{{- $component := index . 1 }}{{- $own := index $root.Values $component -}}
automountServiceAccountToken: false
# Otherwise Kubernetes adds variables for each Service (TOKENCAST_…_PORT), which look like settings.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "tokencast.selector" . | nindent 8 }}
{{- range $field, $value := dict "imagePullSecrets" $root.Values.imagePullSecrets "nodeSelector" $own.nodeSelector "tolerations" $own.tolerations "affinity" $own.affinity }}
{{- with $value }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The same of their containers. */}}
{{- define "tokencast.container" -}}
image: {{ include "tokencast.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
envFrom: [{configMapRef: {name: {{ include "tokencast.name" . }}}}]
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: secrets, mountPath: /run/secrets/tokencast, readOnly: true}
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{/* Arguments: a list of the root context and the keys of the Secret. */}}
{{- define "tokencast.volumes" -}}
- name: secrets
  secret:
    secretName: {{ (index . 0).Values.secrets.name }}
    defaultMode: 0440
    items:
      {{- range index . 1 }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{/* A value as text: Helm reads whole numbers as floating-point ones, and would write 2.097152e+07. */}}
{{- define "tokencast.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end -}}
{{- end }}

{{/* Arguments: a list of the root context and the setting; a number of seconds. */}}
{{- define "tokencast.seconds" -}}
{{- $settings := (index . 0).Values.settings -}}
{{- index $settings (index . 1) | required (printf "settings.%s is required" (index . 1)) | float64 | ceil | int -}}
{{- end }}
