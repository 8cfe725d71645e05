//! A configuration for experiments: one Envoy with many listeners, each of which differs from the recommended
//! configuration in what its test is about. The configurations in `envoy/` are tested as they are, in `configs.rs`.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use testkit::envoy::Envoy;
use testkit::token::Issuer;
use testkit::upstream::Upstream;

/// A configuration in the making.
pub struct Lab {
    listeners: Vec<Value>,
    clusters: Vec<Value>,
}

/// What a listener is like. Fields given here are added to those of the recommended configuration, or replace them.
#[derive(Default)]
pub struct Listener {
    /// Fields of the `ExtAuthz` filter.
    pub authz: Value,
    /// Fields of the connection manager.
    pub manager: Value,
    /// Filters before `ext_authz`.
    pub before: Vec<Value>,
}

impl Lab {
    /// With this upstream.
    pub fn new(upstream: &Upstream) -> Self {
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": upstream.address.port()}});
        Self { listeners: Vec::new(), clusters: vec![cluster("app", &address, json!({}))] }
    }

    /// With a sidecar at this address, `tcp://` or `unix://`.
    pub fn sidecar(mut self, name: &str, address: &str) -> Self {
        let address = match address.strip_prefix("unix://") {
            Some(path) => json!({"pipe": {"path": path}}),
            None => {
                let (host, port) = address.strip_prefix("tcp://").unwrap().rsplit_once(':').unwrap();
                json!({"socket_address": {"address": host, "port_value": port.parse::<u16>().unwrap()}})
            }
        };
        let http2 = json!({"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }}});
        self.clusters.push(cluster(name, &address, http2));
        self
    }

    /// With the last sidecar's cluster as it is if nobody thinks of HTTP/2.
    pub fn without_http2(mut self) -> Self {
        self.clusters.last_mut().unwrap().as_object_mut().unwrap().remove("typed_extension_protocol_options");
        self
    }

    /// With a listener that asks this sidecar.
    pub fn listener(mut self, name: &str, sidecar: &str, more: Listener) -> Self {
        let mut authz = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "stat_prefix": name,
            "grpc_service": {"timeout": "60s", "envoy_grpc": {"cluster_name": sidecar}},
            "failure_mode_allow": false,
            "status_on_error": {"code": "ServiceUnavailable"},
            "encode_raw_headers": true,
            "include_tls_session": true,
            "metadata_context_namespaces": ["envoy.filters.http.jwt_authn"],
            "validate_mutations": true,
            "decoder_header_mutation_rules": {"disallow_system": true, "disallow_is_error": true},
        });
        merge(&mut authz, more.authz);
        let mut filters = more.before;
        filters.push(json!({"name": "envoy.filters.http.ext_authz", "typed_config": authz}));
        filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}));
        let mut manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "normalize_path": true,
            "merge_slashes": true,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "access_log": [{"name": "envoy.access_loggers.file", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": "/dev/stdout",
                "log_format": {"json_format": {
                    "code": "%RESPONSE_CODE%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "flags": "%RESPONSE_FLAGS%",
                    "metadata": "%DYNAMIC_METADATA(envoy.filters.http.ext_authz)%",
                }},
            }}],
            "route_config": {"virtual_hosts": [{"name": "app", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": "app"}},
            ]}]},
            "http_filters": filters,
        });
        merge(&mut manager, more.manager);
        self.listeners.push(json!({
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
            }]}],
        }));
        self
    }

    /// Starts Envoy with it.
    pub async fn start(self) -> Envoy {
        let config = json!({
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "static_resources": {"listeners": self.listeners, "clusters": self.clusters},
        });
        Envoy::start(&config.to_string()).await
    }
}

fn cluster(name: &str, address: &Value, more: Value) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "60s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
    });
    merge(&mut cluster, more);
    cluster
}

fn merge(into: &mut Value, more: Value) {
    if let Value::Object(fields) = more {
        into.as_object_mut().unwrap().extend(fields);
    }
}

/// The filter that verifies tokens of this issuer, as in `envoy/jwt.yaml`.
pub fn jwt_authn(issuer: &Issuer) -> Value {
    json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"issuer": {
            "issuer": "https://issuer.example",
            "audiences": ["bookstore"],
            "local_jwks": {"inline_string": issuer.jwks()},
            "payload_in_metadata": "jwt_payload",
            "forward": true,
        }},
        "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [
            {"provider_name": "issuer"}, {"allow_missing": {}},
        ]}}}],
    }})
}

/// A bundle of these files, beside its `bundle.yaml`.
pub fn bundle(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (path, text) in [("bundle.yaml", "name: lab\n")].iter().chain(files) {
        write(&dir.path().join(path), text);
    }
    dir
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
