{{/* Under upstream's driver name everything has upstream's names: this release takes its place. Under another name
everything has to have other names, for both to fit into one cluster. */}}
{{- define "coffer.dropIn" -}}
{{- if eq .Values.driverName "secrets-store.csi.k8s.io" }}true{{ end -}}
{{- end -}}

{{- define "coffer.name" -}}
{{- .Values.nameOverride | default (ternary "secrets-store-csi-driver" "coffer" (eq (include "coffer.dropIn" .) "true")) -}}
{{- end -}}

{{- define "coffer.fullname" -}}
{{- $name := include "coffer.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $full | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* A fixed name: administrators have bound rights to it. Beside another driver there is one of that name already. */}}
{{- define "coffer.serviceAccount" -}}
{{- if .Values.asProviders -}}
{{ include "coffer.fullname" . }}-providers
{{- else -}}
{{- ternary "secrets-store-csi-driver" (include "coffer.fullname" .) (eq (include "coffer.dropIn" .) "true") -}}
{{- end -}}
{{- end -}}

{{/* What comes before the names of ClusterRoles. */}}
{{- define "coffer.rolePrefix" -}}
{{- if not (include "coffer.dropIn" .) }}{{ .Values.driverName }}-{{ end -}}
{{- end -}}

{{/* The driver's folder among the kubelet's plugins. */}}
{{- define "coffer.pluginDir" -}}
{{- $folder := ternary "csi-secrets-store" .Values.driverName (eq (include "coffer.dropIn" .) "true") -}}
{{- printf "%s/plugins/%s" .Values.linux.kubeletRootDir $folder -}}
{{- end -}}

{{- define "coffer.labels" -}}
{{- $labels := dict
  "app" (include "coffer.name" .)
  "app.kubernetes.io/name" "coffer"
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_"))
-}}
{{- toYaml (merge $labels (.Values.commonLabels | default dict)) -}}
{{- end -}}

{{/* repository:tag or repository@digest; takes an image's values and the tag where they have none. */}}
{{- define "coffer.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- end -}}
{{- end -}}

{{/* The volume with the token for the API server. */}}
{{- define "coffer.apiToken" -}}
# What the kubelet would mount into every container.
- name: api-token
  projected:
    defaultMode: 0400
    sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3607}
    - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
    - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end -}}
