{{- define "common.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      initContainers:
        - name: wait
          image: busybox:1.36
      containers:
        - name: main
          image: {{ printf "%s:%s" .Values.image.repository .Values.image.tag | quote }}
{{- end -}}
