//! A stand-in for AWS KMS: `GetPublicKey` and `Sign` of one key over its HTTP API, slow or failing when a test wants that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use alloy::primitives::Address;
use alloy::signers::k256::ecdsa::{Signature, SigningKey, signature::hazmat::PrehashSigner};
use alloy::signers::local::PrivateKeySigner;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What comes before the 65 bytes of an uncompressed secp256k1 point in a `SubjectPublicKeyInfo`.
const PUBLIC_KEY_HEAD: &str = "3056301006072a8648ce3d020106052b8104000a034200";

/// Closed on drop.
pub(crate) struct Kms {
    url: String,
    key: Arc<Key>,
    _server: JoinSet<()>,
}

struct Key {
    signer: PrivateKeySigner,
    failing: AtomicBool,
    latency_ms: AtomicU64,
    signatures: AtomicUsize,
}

impl Kms {
    pub(crate) async fn with_key(key: &str) -> Self {
        let key = Arc::new(Key {
            signer: key.parse().unwrap(),
            failing: AtomicBool::default(),
            latency_ms: AtomicU64::default(),
            signatures: AtomicUsize::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().route("/", post(answer));
        let routes = routes.with_state(Arc::clone(&key));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self {
            url,
            key,
            _server: server,
        }
    }

    /// The account of the key.
    pub(crate) fn address(&self) -> Address {
        self.key.signer.address()
    }

    /// What the AWS SDK reads.
    pub(crate) fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT_URL_KMS", self.url.clone()),
            ("AWS_REGION", "eu-central-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "AKIATEST".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "kms-secret".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ]
    }

    pub(crate) fn fail(&self, failing: bool) {
        self.key.failing.store(failing, Ordering::SeqCst);
    }

    pub(crate) fn delay(&self, latency: Duration) {
        let latency = u64::try_from(latency.as_millis()).unwrap();
        self.key.latency_ms.store(latency, Ordering::SeqCst);
    }

    pub(crate) fn signatures(&self) -> usize {
        self.key.signatures.load(Ordering::SeqCst)
    }
}

async fn answer(State(key): State<Arc<Key>>, head: HeaderMap, body: String) -> Response {
    // The latency of the service that this stands for.
    let latency = Duration::from_millis(key.latency_ms.load(Ordering::SeqCst));
    tokio::time::sleep(latency).await;
    if key.failing.load(Ordering::SeqCst) {
        let error = json!({"__type": "KMSInternalException", "message": "try again"});
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response();
    }
    let asked: Value = serde_json::from_str(&body).unwrap();
    let secret: &SigningKey = key.signer.credential();
    let answer = match head["x-amz-target"].to_str().unwrap() {
        "TrentService.GetPublicKey" => {
            let mut public = alloy::hex::decode(PUBLIC_KEY_HEAD).unwrap();
            let point = secret.verifying_key().to_encoded_point(false);
            public.extend_from_slice(point.as_bytes());
            json!({"KeyId": asked["KeyId"], "PublicKey": STANDARD.encode(public)})
        }
        "TrentService.Sign" => {
            assert_eq!(asked["MessageType"], "DIGEST");
            assert_eq!(asked["SigningAlgorithm"], "ECDSA_SHA_256");
            let digest = STANDARD.decode(asked["Message"].as_str().unwrap()).unwrap();
            let signature: Signature = secret.sign_prehash(&digest).unwrap();
            key.signatures.fetch_add(1, Ordering::SeqCst);
            let signature = STANDARD.encode(signature.to_der());
            json!({"KeyId": asked["KeyId"], "Signature": signature, "SigningAlgorithm": "ECDSA_SHA_256"})
        }
        other => panic!("x402d needs no {other}"),
    };
    let kind = [("content-type", "application/x-amz-json-1.1")];
    (kind, answer.to_string()).into_response()
}
