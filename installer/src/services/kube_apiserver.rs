//! The Kubernetes API server.

use planet::config::Probe;

use super::{Context, Definition, config, control_plane_command, secret};

/// Anonymous requests may ask for health and nothing else.
const AUTHENTICATION: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
    - path: /livez
    - path: /readyz
    - path: /healthz
";

/// Pods that the baseline standard would refuse are told of, in warnings and in
/// the audit log; vendors tighten it a namespace at a time.
const ADMISSION: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: PodSecurity
    configuration:
      apiVersion: pod-security.admission.config.k8s.io/v1
      kind: PodSecurityConfiguration
      defaults:
        enforce: privileged
        enforce-version: latest
        audit: baseline
        audit-version: latest
        warn: baseline
        warn-version: latest
      exemptions:
        namespaces: [kube-system]
";

/// Who changed what, without contents; reads and the control plane's own
/// chatter are left out.
const AUDIT: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    users: ['system:apiserver', 'system:kube-controller-manager', 'system:kube-scheduler']
  - level: None
    userGroups: ['system:nodes', 'system:serviceaccounts:kube-system']
  - level: None
    verbs: [get, list, watch]
  - level: Metadata
";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let address = context.address();
    let mut command = control_plane_command(
        context,
        "kube-apiserver",
        &[
            ("advertise-address", address.to_string()),
            // Not every address: the balancer has the same port on its own.
            ("bind-address", address.to_string()),
            ("secure-port", spec::API_PORT.to_string()),
            ("etcd-servers", "https://127.0.0.1:2379".into()),
            ("etcd-cafile", secret("etcd-ca.crt")),
            ("etcd-certfile", secret("etcd-client.crt")),
            ("etcd-keyfile", secret("etcd-client.key")),
            ("tls-cert-file", secret("apiserver.crt")),
            ("tls-private-key-file", secret("apiserver.key")),
            ("client-ca-file", secret("kubernetes-ca.crt")),
            ("kubelet-certificate-authority", secret("kubernetes-ca.crt")),
            (
                "kubelet-client-certificate",
                secret("apiserver-kubelet-client.crt"),
            ),
            ("kubelet-client-key", secret("apiserver-kubelet-client.key")),
            ("kubelet-preferred-address-types", "InternalIP".into()),
            ("service-cluster-ip-range", context.service_cidr().into()),
            (
                "service-account-issuer",
                format!("https://kubernetes.default.svc.{}", context.cluster.domain),
            ),
            ("service-account-key-file", secret("service-account.pub")),
            (
                "service-account-signing-key-file",
                secret("service-account.key"),
            ),
            ("proxy-client-cert-file", secret("front-proxy-client.crt")),
            ("proxy-client-key-file", secret("front-proxy-client.key")),
            ("requestheader-client-ca-file", secret("front-proxy-ca.crt")),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            (
                "requestheader-extra-headers-prefix",
                "X-Remote-Extra-".into(),
            ),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("authentication-config", config("authentication.yaml")),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("admission-control-config-file", config("admission.yaml")),
            ("encryption-provider-config", secret("encryption.yaml")),
            ("audit-policy-file", config("audit.yaml")),
            ("audit-log-path", "/var/log/planet/audit/audit.log".into()),
            ("audit-log-maxsize", "50".into()),
            ("audit-log-maxbackup", "4".into()),
            ("allow-privileged", "true".into()),
            ("profiling", "false".into()),
            ("v", "1".into()),
        ],
    );
    let ports = context.cluster.settings.node_ports.iter();
    command.extend(ports.map(|ports| format!("--service-node-port-range={ports}")));
    let ready = Probe::Http {
        url: format!("https://{address}:{}/readyz", spec::API_PORT),
    };
    let mut service = context.unprivileged("kube-apiserver", command, ready);
    service.requires = vec!["etcd".into()];
    service.directories = vec!["/var/log/planet/audit".into()];
    // Everything waits for it: it gets the processor first.
    service.cpu_weight = Some(400);
    service.stop_timeout_seconds = 20;
    let files = vec![
        context.file("authentication.yaml", AUTHENTICATION.into()),
        context.file("admission.yaml", ADMISSION.into()),
        context.file("audit.yaml", AUDIT.into()),
    ];
    Definition {
        files,
        ..service.into()
    }
}
