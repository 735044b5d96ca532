//! A signer's key in AWS KMS. Credentials and region come from where the AWS SDK looks for them: the environment, the profile, the machine.

use std::time::Duration;

use alloy::primitives::{Address, B256, Signature};
use alloy::signers::Signer as _;
use alloy_signer_aws::AwsSigner;
use alloy_signer_aws::aws_sdk_kms::Client;
use aws_config::BehaviorVersion;
use aws_config::timeout::TimeoutConfig;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use crate::chain::signer::{KeyService, SignerKey, SigningFailed};

/// One call to AWS KMS.
const CALL_LIMIT: Duration = Duration::from_secs(2);
/// One signature, with the calls that the SDK repeats and the first connection. Shorter than the lease of a lane.
const LIMIT: Duration = Duration::from_secs(5);

/// The key. Its address is configured, so that the service starts while AWS KMS is away.
#[derive(Debug)]
struct AwsKmsKey {
    address: Address,
    /// A key id, an alias, or the ARN of one.
    id: String,
    /// Made at the first use. A failure is not kept.
    signer: OnceCell<AwsSigner>,
}

/// The key that AWS KMS keeps under `id`, of the account `address`.
pub fn key(address: Address, id: String) -> SignerKey {
    SignerKey::kept_by(AwsKmsKey {
        address,
        id,
        signer: OnceCell::const_new(),
    })
}

impl KeyService for AwsKmsKey {
    fn address(&self) -> Address {
        self.address
    }

    fn check(&self) -> BoxFuture<'_, Result<(), SigningFailed>> {
        Box::pin(within_limit(async { self.signer().await.map(drop) }))
    }

    fn sign(&self, digest: B256) -> BoxFuture<'_, Result<Signature, SigningFailed>> {
        Box::pin(within_limit(async move {
            let signer = self.signer().await?;
            signer.sign_hash(&digest).await.map_err(failed)
        }))
    }
}

impl AwsKmsKey {
    async fn signer(&self) -> Result<&AwsSigner, SigningFailed> {
        self.signer.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<AwsSigner, SigningFailed> {
        let limits = TimeoutConfig::builder()
            .operation_attempt_timeout(CALL_LIMIT)
            .operation_timeout(LIMIT);
        let config = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(limits.build())
            .load()
            .await;
        // The chain's id is in what is signed.
        let signer = AwsSigner::new(Client::new(&config), self.id.clone(), None)
            .await
            .map_err(failed)?;
        let (expected, found) = (self.address, signer.address());
        if expected != found {
            return Err(SigningFailed::OtherKey { expected, found });
        }
        Ok(signer)
    }
}

async fn within_limit<T>(
    asked: impl Future<Output = Result<T, SigningFailed>>,
) -> Result<T, SigningFailed> {
    let answered = tokio::time::timeout(LIMIT, asked).await;
    answered.unwrap_or_else(|late| Err(failed(late)))
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> SigningFailed {
    SigningFailed::Service {
        service: "AWS KMS",
        cause: error.into(),
    }
}
