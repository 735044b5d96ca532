//! A ledger on a database of its own for each test, and rows to put into it.

mod database;

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use alloy::primitives::{Address, B256, Bytes, U256};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    Accepted, Attempt, AuthorizationKey, BlockRef, Claim, GrantRequest, LaneKey, LaneLease, Ledger,
    MinedTransaction, NewPayment, NewSession, NewTransaction, OpenLimits, Opened, Recorded,
    TransactionKind, TransferredPayment,
};
use crate::payment::fixture::{self, AMOUNT, FACILITATOR, PAYEE, PAYER, USDC};
use crate::payment::session::{SessionStatus, Transfer};
use crate::payment::{Candidate, ChainFacts, Location, Payment, PaymentId, Purpose, Session};
use crate::protocol::session::{Rail, SessionId, nonce, transfer_calldata};
use crate::protocol::{Amount, Network, Scheme, X402Version};

/// The end of every authorization and session of these tests: the database's clock must not reach it.
const VALID_BEFORE: u64 = 4_102_444_800;
/// Makes a row of `payments` unreadable, within the constraints of the schema.
const UNREADABLE: &str = "valid_after = timestamptz '1960-01-01'";

/// A ledger on its own database, as one process sees it.
pub(super) struct TestLedger {
    ledger: Ledger,
    url: String,
    database: String,
    /// For statements of the test itself.
    own: Mutex<PgConnection>,
    tasks: Mutex<JoinSet<()>>,
    /// A test has changed the schema, so no other one can use the database.
    altered: AtomicBool,
}

impl Deref for TestLedger {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}

impl Drop for TestLedger {
    fn drop(&mut self) {
        let database = self.database.clone();
        if self.altered.load(Ordering::Relaxed) || thread::panicking() {
            database::remove(database);
        } else {
            database::release(database);
        }
    }
}

impl TestLedger {
    pub(super) async fn new() -> Self {
        let database = database::empty().await;
        let url = database::url_of(&database);
        let (ledger, task) = Ledger::connect(&url, 8).await.unwrap();
        let test = Self {
            own: Mutex::new(PgConnection::connect(&url).await.unwrap()),
            tasks: Mutex::default(),
            altered: AtomicBool::new(false),
            ledger,
            url,
            database,
        };
        test.tasks.lock().await.spawn(task.run());
        test.begin_process().await.unwrap();
        test
    }

    /// A further process on the same ledger.
    pub(super) async fn another_process(&self) -> Ledger {
        let (ledger, task) = Ledger::connect(&self.url, 8).await.unwrap();
        self.tasks.lock().await.spawn(task.run());
        ledger.begin_process().await.unwrap();
        ledger
    }

    pub(super) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// Runs statements without the triggers of the schema, so that a test can write states that no transition reaches.
    pub(super) async fn run(&self, statements: &str) {
        let free = format!("set local session_replication_role = replica; {statements}");
        self.try_run(&free).await.unwrap();
    }

    /// Runs statements as the program would, in one transaction.
    pub(super) async fn try_run(&self, statements: &str) -> Result<(), sqlx::Error> {
        let altering = ["alter table", "_sqlx_migrations"];
        if altering.iter().any(|text| statements.contains(text)) {
            self.altered.store(true, Ordering::Relaxed);
        }
        let mut own = self.own.lock().await;
        let mut transaction = own.begin().await?;
        let statements = AssertSqlSafe(statements.to_owned());
        sqlx::raw_sql(statements).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    /// The single value of a `select`, as text; `-` for null or no row.
    pub(super) async fn value(&self, select: &str) -> String {
        let statement = format!("select coalesce(({select})::text, '-')");
        let value = sqlx::query_scalar(AssertSqlSafe(statement));
        let mut own = self.own.lock().await;
        value.fetch_one(&mut *own).await.unwrap()
    }

    /// A value of a payment's row.
    pub(super) async fn payment_value(&self, id: PaymentId, column: &str) -> String {
        let id = id.0;
        self.value(&format!("select {column} from payments where id = '{id}'"))
            .await
    }

    pub(super) async fn state(&self, id: PaymentId) -> String {
        self.payment_value(id, "state").await
    }

    /// Sets columns of a payment, without triggers.
    pub(super) async fn set(&self, id: PaymentId, columns: &str) {
        let id = id.0;
        self.run(&format!("update payments set {columns} where id = '{id}'"))
            .await;
    }

    pub(super) async fn make_unreadable(&self, id: PaymentId) {
        self.set(id, UNREADABLE).await;
    }

    pub(super) async fn assert_quarantined(&self, id: PaymentId) {
        let why = self.payment_value(id, "quarantine_reason").await;
        assert_eq!(why, format!("payments.valid_after of {id} cannot be read"));
        let events = "select count(*) from events where kind = 'quarantined' and payment_id";
        let events = self.value(&format!("{events} = '{id}'")).await;
        assert_eq!(events, "1");
    }

    /// An accepted payment with this nonce, queued and claimed by this process.
    pub(super) async fn accepted(&self, nonce: u8) -> Payment {
        let outcome = self.accept(new_payment(nonce)).await.unwrap();
        let Accepted::New(payment) = outcome else {
            panic!("expected a new payment, got {outcome:?}");
        };
        *payment
    }

    /// Queued payments with the nonces 1, 2 and 3, of which the second cannot be read. Each has a payer of its own.
    pub(super) async fn one_unreadable_of_three(&self) -> [PaymentId; 3] {
        let mut ids = Vec::new();
        for nonce in 1..=3 {
            ids.push(self.accepted(nonce).await.id);
        }
        self.make_unreadable(ids[1]).await;
        [ids[0], ids[1], ids[2]]
    }

    /// A settled payment that nobody was told about, in the block of [`location`].
    pub(super) async fn settled(&self, nonce: u8) -> Payment {
        let candidate = candidate(nonce);
        let id = PaymentId(Uuid::now_v7());
        let settled = super::AlreadyTransferred {
            id,
            candidate: &candidate,
            confirmations: 2,
            location: &location(nonce),
            confirmed: true,
        };
        assert!(self.accept_transferred(&settled).await.unwrap());
        self.payment(id).await.unwrap().unwrap()
    }

    /// A lane that this process owns.
    pub(super) async fn owned_lane(&self) -> (LaneKey, LaneLease) {
        self.open_lane(LANE, 0).await.unwrap();
        (LANE, own(self, LANE).await)
    }

    /// Writes a transaction with `payments` under the lane's `nonce`. Its first attempt is [`attempt`] with that number.
    pub(super) async fn signed(&self, lease: LaneLease, nonce: u64, payments: &[&Payment]) -> Uuid {
        let attempt = attempt(nonce);
        let new = transaction(lease, nonce, &attempt, payments);
        let outcome = self.record(&new).await.unwrap();
        let Recorded::Written(id) = outcome else {
            panic!("expected it to be written, got {outcome:?}");
        };
        id
    }

    /// Opens a session with its own nonce.
    pub(super) async fn opened(&self, number: u8, rail: Rail) -> Session {
        let session = session(number, rail);
        let opened = self.open_session(&opening(&session)).await.unwrap();
        assert_eq!(opened, Opened::Yes);
        session
    }
}

pub(super) const NETWORK: Network = Network::from_chain_id(84_532);
pub(super) const LANE: LaneKey = LaneKey {
    network: NETWORK,
    signer: FACILITATOR,
};
/// A lane that the tests leave alone, with another signer.
pub(super) const OTHER_LANE: LaneKey = LaneKey {
    network: NETWORK,
    signer: Address::repeat_byte(0x44),
};

/// Claims a lane that must be free. The share of a process is more than the lanes of these tests.
pub(super) async fn own(ledger: &Ledger, lane: LaneKey) -> LaneLease {
    let outcome = ledger.claim_lane(lane, 10).await.unwrap();
    let Claim::Owned(lease) = outcome else {
        panic!("expected to own the lane, got {outcome:?}");
    };
    lease
}

/// The end of the window of every authorization, and of every session.
pub(super) fn valid_before() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(VALID_BEFORE.cast_signed()).unwrap()
}

/// An EIP-3009 authorization with this nonce, of a payer of its own: what one payer promises does not bound another.
pub(super) fn candidate(nonce: u8) -> Candidate {
    let mut candidate = fixture::candidate();
    candidate.authorization.nonce = B256::repeat_byte(nonce);
    candidate.authorization.from = Address::repeat_byte(nonce);
    candidate.authorization.valid_before = Amount::from_atomic(U256::from(VALID_BEFORE));
    candidate
}

/// A Permit2 authorization with this nonce, of a payer of its own.
pub(super) fn permit2_candidate(scheme: Scheme, nonce: u8) -> Candidate {
    let mut candidate = fixture::candidate_of(&fixture::permit2_body(scheme), Purpose::Settle);
    candidate.authorization.nonce = B256::repeat_byte(nonce);
    candidate.authorization.from = Address::repeat_byte(nonce);
    candidate.authorization.valid_before = Amount::from_atomic(U256::from(VALID_BEFORE));
    candidate
}

/// What [`Ledger::accept`] is asked for this candidate. With the facts of the fixture the payer has exactly [`AMOUNT`].
pub(super) fn verified(candidate: Candidate, facts: &ChainFacts) -> NewPayment {
    NewPayment {
        id: PaymentId(Uuid::now_v7()),
        verified: candidate.verified(facts.clone()).unwrap(),
        confirmations: 2,
        claimed: true,
        first_asker: None,
    }
}

pub(super) fn new_payment(nonce: u8) -> NewPayment {
    verified(candidate(nonce), &fixture::facts())
}

pub(super) fn key(nonce: u8) -> AuthorizationKey {
    AuthorizationKey::from(&candidate(nonce))
}

/// Where a payment's money was transferred: a block per number, at the height 100 + number.
pub(super) fn location(number: u8) -> Location {
    Location {
        transaction: B256::repeat_byte(number),
        log_index: u64::from(number),
        block_number: block(number).number,
        block_hash: block(number).hash,
        block_time: block(number).time,
    }
}

pub(super) fn block(number: u8) -> BlockRef {
    BlockRef {
        number: 100 + u64::from(number),
        hash: B256::repeat_byte(number),
        time: fixture::now(),
    }
}

/// Signed bytes, different for each number.
pub(super) fn attempt(number: u64) -> Attempt {
    let raw = Bytes::from(format!("attempt {number}").into_bytes());
    Attempt {
        hash: alloy::primitives::keccak256(&raw),
        raw,
        gas_limit: 100_000,
        max_fee_wei: 2_000,
        max_priority_fee_wei: 1_000,
        empty: false,
    }
}

pub(super) fn transaction<'a>(
    lease: LaneLease,
    nonce: u64,
    attempt: &'a Attempt,
    payments: &'a [&'a Payment],
) -> NewTransaction<'a> {
    NewTransaction {
        lane: LANE,
        epoch: lease.epoch,
        nonce,
        kind: TransactionKind::Direct,
        attempt,
        payments,
    }
}

/// The first attempt of the transaction under the lane's `nonce`, in block `number`; it has transferred `payments`.
pub(super) fn mined(id: Uuid, nonce: u64, number: u8, payments: &[PaymentId]) -> MinedTransaction {
    let transferred = payments
        .iter()
        .zip(0..)
        .map(|(payment, log_index)| TransferredPayment {
            payment: *payment,
            log_index,
            confirmed: false,
        });
    MinedTransaction {
        id,
        hash: attempt(nonce).hash,
        block: block(number),
        succeeded: true,
        gas_used: 60_000,
        gas_price_wei: 1_500,
        further_fee_wei: 7,
        transferred: transferred.collect(),
    }
}

pub(super) fn request(id: &str) -> GrantRequest {
    GrantRequest {
        request_id: id.to_owned(),
        asked_as: id.to_owned(),
        caller: "a caller".to_owned(),
    }
}

/// A session with the terms of the fixture.
pub(super) fn session(number: u8, rail: Rail) -> Session {
    let id = SessionId::from_entropy([number; 26].into());
    let requirements_hash = B256::repeat_byte(0x44);
    Session {
        version: X402Version::V2,
        rail,
        network: NETWORK,
        asset: USDC,
        payer: PAYER,
        payee: PAYEE,
        amount: Amount::from_atomic(U256::from(AMOUNT)),
        accepted: "{}".to_owned(),
        requirements_hash,
        nonce: nonce(&id, requirements_hash),
        id,
        resource_id: None,
        resource: None,
        client_reference: None,
        accept_from_block: 7,
        confirmations: 1,
        expires_at: valid_before(),
        status: SessionStatus::Open,
        payment: None,
        needs_id: false,
        created_at: fixture::now(),
    }
}

/// The token that cancels the sessions of [`opening`].
pub(super) const CANCEL_TOKEN_HASH: B256 = B256::repeat_byte(0xca);

pub(super) fn opening(session: &Session) -> NewSession<'_> {
    NewSession {
        session,
        cancel_token_hash: CANCEL_TOKEN_HASH,
        client: "192.0.2.1",
        limits: OpenLimits {
            total: 100,
            client: 100,
            party: 100,
        },
    }
}

/// The payer's own transaction for a session.
pub(super) fn transfer(session: &Session, hash: u8) -> Transfer {
    Transfer {
        hash: B256::repeat_byte(hash),
        chain_id: Some(NETWORK.chain_id()),
        from: session.payer,
        account_nonce: u64::from(hash),
        to: Some(session.asset),
        value: U256::ZERO,
        input: transfer_calldata(session.payee, session.amount, session.nonce),
    }
}
