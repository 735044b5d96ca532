//! Steps of a history.

use proptest::prelude::*;

use crate::support::Fault;

/// Payers per history.
pub(crate) const PAYERS: u8 = 3;

/// One step. Payment numbers are taken modulo the number of payments so far.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A payer creates this many payments, presented concurrently.
    Pay { payer: u8, count: u8 },
    /// A payment is presented again.
    Again(u8),
    /// Waits until the service has made this many more RPC calls.
    Progress(u8),
    /// Blocks are mined automatically with each transaction, or manually.
    Blocks { automatic: bool },
    /// Mines this many blocks.
    Mine(u8),
    /// Calls of a method meet a fault until the next change.
    Fault(&'static str, Fault),
    /// All faults end.
    Calm,
    /// The pool drops all transactions.
    Forget,
    /// The newest blocks are replaced by empty ones.
    Reorg(u8),
    /// Another account submits a payment's authorization.
    Submit(u8),
    /// The payer cancels a payment's authorization.
    Cancel(u8),
    /// A payer transfers its whole balance to another account.
    Spend(u8),
    /// Every connection to the database breaks.
    Cut,
    /// The process is killed and started again.
    Kill,
    /// Advances the chain's time past the end of everything signed so far.
    Expire,
}

const SEND: &str = "eth_sendRawTransaction";

fn fault() -> impl Strategy<Value = Step> {
    let faults = prop_oneof![
        Just(Fault::Unavailable),
        Just(Fault::AnswerLost),
        Just(Fault::RequestLost),
        Just(Fault::NotJson),
        Just(Fault::Error("nonce too low")),
        Just(Fault::Error("already known")),
        Just(Fault::Error("replacement transaction underpriced")),
    ];
    let methods = prop_oneof![
        4 => Just(SEND),
        1 => Just("eth_getBlockReceipts"),
        1 => Just("eth_getTransactionReceipt"),
        1 => Just("eth_call"),
        1 => Just("eth_getBlockByNumber"),
        1 => Just("eth_getLogs"),
    ];
    (methods, faults).prop_map(|(method, fault)| Step::Fault(method, fault))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..PAYERS, 1..6_u8).prop_map(|(payer, count)| Step::Pay { payer, count }),
        4 => any::<u8>().prop_map(Step::Again),
        5 => (1..12_u8).prop_map(Step::Progress),
        2 => any::<bool>().prop_map(|automatic| Step::Blocks { automatic }),
        3 => (1..4_u8).prop_map(Step::Mine),
        4 => fault(),
        2 => Just(Step::Calm),
        1 => Just(Step::Forget),
        2 => (1..4_u8).prop_map(Step::Reorg),
        2 => any::<u8>().prop_map(Step::Submit),
        1 => any::<u8>().prop_map(Step::Cancel),
        1 => (0..PAYERS).prop_map(Step::Spend),
        1 => Just(Step::Cut),
        1 => Just(Step::Kill),
        1 => Just(Step::Expire),
    ]
}

/// A history begins with payments and contains at most one kill, because a new process has to wait for the dead one's leases.
pub(crate) fn history() -> impl Strategy<Value = Vec<Step>> {
    let first = (0..PAYERS, 1..6_u8).prop_map(|(payer, count)| Step::Pay { payer, count });
    (first, prop::collection::vec(step(), 4..16)).prop_map(|(first, others)| {
        let mut deaths = 0;
        let others = others.into_iter().filter(|step| {
            deaths += u8::from(matches!(step, Step::Kill));
            !matches!(step, Step::Kill) || deaths == 1
        });
        [first].into_iter().chain(others).collect()
    })
}
