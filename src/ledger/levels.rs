//! Levels of what is measured again and again: a trigger tells of their changes.

use super::{Ledger, LedgerError};
use crate::protocol::Network;

impl Ledger {
    /// Notes the level of a topic's subject. A level that is noted already is no change.
    pub async fn note_level(
        &self,
        (topic, network, subject): (&str, Network, &str),
        level: &str,
    ) -> Result<(), LedgerError> {
        sqlx::query!(
            "insert into levels as l (topic, network, subject, level) values ($1, $2, $3, $4)
            on conflict on constraint levels_pkey do update set level = excluded.level, since = now() where l.level <> excluded.level",
            topic,
            network.to_string(),
            subject,
            level,
        )
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Whether a running process serves a network.
    pub async fn is_served(&self, network: Network) -> Result<bool, LedgerError> {
        let served = sqlx::query_scalar!(
            r#"select exists (select from processes where lease_until > now() and $1 = any(serves)) as "served!""#,
            network.to_string(),
        )
        .fetch_one(&self.leases)
        .await?;
        Ok(served)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::testing::TestLedger;

    const NETWORK: Network = Network::from_chain_id(8453);
    const SIGNER: &str = "0x5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e";

    #[tokio::test]
    async fn change_of_a_level_is_told_once() {
        let test = TestLedger::new().await;
        let other = test.another_process().await;
        for (topic, subject, level) in [
            ("network", "", "up"),
            ("network", "", "down"),
            ("network", "", "down"),
            ("network", "", "up"),
            ("signer", SIGNER, "low"),
            ("signer", SIGNER, "good"),
            ("signer", SIGNER, "empty"),
            ("budget", "key shop", "good"),
            ("budget", "key shop", "exhausted"),
        ] {
            for ledger in [&*test, &other] {
                let of = (topic, NETWORK, subject);
                ledger.note_level(of, level).await.unwrap();
            }
        }
        let told = "select string_agg(concat_ws(' ', kind, encode(signer, 'hex'), subject), ', ' order by id) from events";
        let signer = &SIGNER[2..];
        let expected = format!(
            "network.down, network.up, signer.low {signer}, signer.empty {signer}, budget.exhausted key shop"
        );
        assert_eq!(test.value(told).await, expected);
    }

    #[tokio::test]
    async fn network_is_served_by_a_process_with_a_lease() {
        let test = TestLedger::new().await;
        assert!(!test.is_served(NETWORK).await.unwrap());
        test.renew_process(&[NETWORK]).await.unwrap();
        assert!(test.is_served(NETWORK).await.unwrap());
        test.run("update processes set lease_until = now() - interval '1 second'")
            .await;
        assert!(!test.is_served(NETWORK).await.unwrap());
    }
}
