//! Starts and stops everything: configuration → ledger → networks → engine → router → sockets, and back.

mod callers;
mod descriptors;
mod events;
mod listeners;
mod problem;
mod rpc;

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chain::MULTICALL3;
use crate::chain::{FactsReader, FactsTask, SignerKey};
use crate::config::{Config, NetworkConfig};
use crate::facilitator::{Facilitator, Gate, Looks, Sessions, UsedNonces};
use crate::http::{AppState, LastBacklog, LastReadiness, PageSessions};
use crate::ledger::{Ledger, LedgerTask};
use crate::protocol::{Reason, Scheme};
use crate::settlement::{
    Approver, BatchLimits, BudgetWatch, EngineFailed, Lane, Pickup, Reconciler, SenderWatch,
    ServedNetwork, ServedNetworkParts, Supervisor, Task, Transfers, UnconfiguredSigners, Waiters,
    Watch, failpoint,
};
use crate::telemetry::causes;
use crate::telemetry::metrics::Metrics;
use listeners::{listen, listen_for_metrics};

pub use listeners::check_address;
pub use problem::{NetworkProblem, StartError};
pub(crate) use rpc::{network_rpc, rpc_with_urls};

/// How long requests may take to end once the service stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How often old sessions are deleted.
const FORGET_INTERVAL: Duration = Duration::from_mins(1);
/// Pause before an RPC that did not answer at the start is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// A task, not started yet.
type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the ledger is.
#[derive(Debug, Clone, Copy)]
pub struct LedgerPlace<'a> {
    /// URL of the database.
    pub url: &'a str,
    /// The folder of the private Postgres, if it is one.
    pub data_dir: Option<&'a Path>,
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    ledger: Ledger,
    stopping: CancellationToken,
    stopped: CancellationToken,
    requests: TaskTracker,
    engine: TaskTracker,
    supervisor: Supervisor,
}

impl Service {
    /// Starts everything. The database is migrated first. A network whose RPC does not answer is retried in the background; one with a
    /// wrong configuration stops the start.
    ///
    /// # Errors
    /// [`StartError`] says what to correct.
    pub async fn start(config: &Config, place: LedgerPlace<'_>) -> Result<Self, StartError> {
        descriptors::provide(config)?;
        let (ledger, statements) = open_ledger(config, place).await?;
        let (stopping, stopped) = (CancellationToken::new(), CancellationToken::new());
        let (requests, engine) = (TaskTracker::new(), TaskTracker::new());
        let supervisor = Supervisor::new(engine.clone(), stopped.clone());
        let waiters = Waiters::default();
        let metrics = Metrics::new(Reason::ALL.iter().map(|reason| reason.code()));
        let shared = (&ledger, &waiters, &metrics);
        let served_networks = open_networks(config, shared, &supervisor, &stopped).await?;
        supervisor.run(
            Task::of_process("statements"),
            until(&stopped, statements.run()),
        );
        run_process(&supervisor, &stopped, (&ledger, &served_networks, &waiters));
        let gate = Gate::new(callers::gate_rules(config));
        callers::follow_deny_list(&supervisor, &stopped, &gate);
        let access = callers::access(config, &ledger).await?;
        callers::keep_keys(&supervisor, &stopped, (&ledger, &access.keys));
        let refusals = callers::keep_refusals(&supervisor, &stopped, (&ledger, &metrics));
        let events = events::keep(&supervisor, &stopped, (&ledger, &metrics))
            .map_err(StartError::Webhooks)?;
        let facilitator = Facilitator {
            access,
            gate,
            looks: Looks::default(),
            used_nonces: UsedNonces::default(),
            ledger: ledger.clone(),
            refusals,
            metrics,
            served_networks: served_networks.into(),
            signers: callers::signers(config),
            waiters,
            clock: ledger.clock(),
            settle_wait: config.settle_wait,
            verify_lease_s: config.verify_lease_s,
            stopping: stopping.clone(),
            tasks: requests.clone(),
        };
        let sessions = Sessions {
            payments: facilitator.clone(),
            rules: callers::session_rules(&config.sessions),
        };
        let state = AppState {
            facilitator,
            sessions,
            admin_token: config.admin_token.clone().map(Arc::new),
            body_bytes_max: config.body_bytes_max,
            readiness: LastReadiness::default(),
            backlog: LastBacklog::default(),
            data_dir: place.data_dir.map(Path::to_path_buf),
            events,
            page: PageSessions::default(),
            supervisor: supervisor.clone(),
        };
        listen_for_metrics(config, &state, &requests, &stopping).await?;
        let address = listen(config, state, &requests, &stopping).await?;
        Ok(Self {
            address,
            ledger,
            stopping,
            stopped,
            requests,
            engine,
            supervisor,
        })
    }

    /// Returns when a task of the engine has failed so often that only a new process can help. The service then has to be stopped.
    pub async fn failed(&self) -> EngineFailed {
        self.supervisor.failed().await
    }

    /// The address on which the service listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops in order: no new requests, responses for those that wait, then the engine, then the leases. Work that is interrupted here is
    /// in the ledger, and the next start continues it.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.requests.close();
        if tokio::time::timeout(DRAIN_LIMIT, self.requests.wait())
            .await
            .is_err()
        {
            tracing::warn!("shutdown: some requests did not end in time");
        }
        self.stopped.cancel();
        self.engine.close();
        if tokio::time::timeout(DRAIN_LIMIT, self.engine.wait())
            .await
            .is_err()
        {
            tracing::warn!("shutdown: the engine did not end in time");
        }
        if let Err(error) = self.ledger.end_process().await {
            tracing::warn!(
                error = causes(&error),
                "leases not released; they expire by themselves"
            );
        }
        self.ledger.close().await;
    }
}

/// The ledger, brought up to date, with what groups its statements.
async fn open_ledger(
    config: &Config,
    place: LedgerPlace<'_>,
) -> Result<(Ledger, LedgerTask), StartError> {
    let (ledger, statements) = Ledger::connect(place.url, config.database_connections_max).await?;
    let ledger = ledger.with_timing(failpoint::timing());
    ledger.migrate().await?;
    ledger.begin_process().await?;
    Ok((ledger, statements))
}

async fn open_networks(
    config: &Config,
    shared: (&Ledger, &Waiters, &Metrics),
    supervisor: &Supervisor,
    stopped: &CancellationToken,
) -> Result<Vec<Arc<ServedNetwork>>, StartError> {
    let mut served = Vec::new();
    for network in &config.networks {
        served.push(open_network(network, shared, supervisor, stopped).await?);
    }
    Ok(served)
}

async fn open_network(
    config: &NetworkConfig,
    (ledger, waiters, metrics): (&Ledger, &Waiters, &Metrics),
    supervisor: &Supervisor,
    stopped: &CancellationToken,
) -> Result<Arc<ServedNetwork>, StartError> {
    let network = config.policy.network;
    let named = |problem| StartError::Network {
        network: network.to_string(),
        problem,
    };
    let rpc = network_rpc(config).map_err(|error| named(error.into()))?;
    rpc.time_calls(metrics);
    let (caller_rpc, gas_cap) = (rpc.for_callers(), config.fees.gas_cap);
    let (facts, for_callers) = FactsReader::new(caller_rpc.clone(), gas_cap);
    let (lane_facts, for_lanes) = FactsReader::new(rpc.clone(), gas_cap);
    let served = Arc::new(ServedNetwork::new(ServedNetworkParts {
        ledger: ledger.clone(),
        timing: ledger.timing(),
        rpc,
        caller_rpc,
        facts,
        lane_facts,
        policy: config.policy.clone(),
        fees: config.fees,
        waiters: waiters.clone(),
        metrics: metrics.of_network(&network.to_string(), &Scheme::ALL.map(Scheme::name)),
        signers: addresses(&config.signers),
        queue_max: config.queue_max,
        queue_max_per_payer: config.queue_max_per_payer,
        inflight_max: config.inflight_max,
        poll: config.poll,
        batch_wait: config.batch_wait,
        batches: BatchLimits {
            rows_max: config.batch_rows_max,
            gas_max: config.batch_gas_max,
        },
    }));
    served.note_proxies(ledger.proxies(network).await?);
    let signers = config.signers.clone();
    let mut logged = String::new();
    match check(&served, &signers).await {
        Ok(()) => {}
        Err(problem) if problem.is_transient() => {
            logged = problem.to_string();
            tracing::warn!(%network, %problem, "network not served yet: its RPC does not answer; retrying");
        }
        Err(problem) => return Err(named(problem)),
    }
    let work = run_network(
        Arc::clone(&served),
        (signers, logged),
        [for_callers, for_lanes],
        supervisor.clone(),
        stopped.clone(),
    );
    supervisor.run(Task::of(network, "start"), work);
    Ok(served)
}

/// Runs a network once its RPC has confirmed the configuration. A problem that was logged already is not logged again.
async fn run_network(
    served: Arc<ServedNetwork>,
    (signers, mut logged): (Vec<SignerKey>, String),
    facts: [FactsTask; 2],
    supervisor: Supervisor,
    stopped: CancellationToken,
) {
    let network = served.policy.network;
    while let Err(problem) = check(&served, &signers).await {
        let text = problem.to_string();
        // An RPC that was down may come back with another chain or token behind it: every new problem is logged.
        if text != logged {
            if problem.is_transient() {
                tracing::warn!(%network, problem = text, "network not served yet: its RPC does not answer; retrying");
            } else {
                tracing::error!(%network, problem = text, "network not served yet; retrying");
            }
            logged = text;
        }
        tokio::select! {
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    SenderWatch::new(Arc::clone(&served)).first_check().await;
    if let Err(error) = BudgetWatch::new(Arc::clone(&served)).read().await {
        tracing::warn!(%network, error = causes(&error), "gas budgets not read: payments of keys wait; retrying");
    }
    served.open();
    if !served.has_multicall() {
        tracing::warn!(%network, contract = %MULTICALL3, "Multicall3 is not deployed: each payment gets its own transaction");
    }
    tracing::info!(%network, signers = signers.len(), confirmations = served.policy.confirmations, "network served");
    for facts in facts {
        let sending = Arc::clone(&served);
        let work = facts.run(move || sending.simulated_sender(None));
        supervisor.run(Task::of(network, "facts"), until(&stopped, work));
    }
    keep_network(&supervisor, &served, &stopped);
    for key in signers {
        let (served, stop) = (Arc::clone(&served), stopped.clone());
        supervisor.keep_running(Task::lane(network, key.address()), move || {
            Some(Lane::run_with_cleanup(
                Arc::clone(&served),
                key.clone(),
                stop.clone(),
            ))
        });
    }
    stopped.cancelled().await;
}

/// Keeps those tasks of a network alive that can be started at any time.
fn keep_network(supervisor: &Supervisor, served: &Arc<ServedNetwork>, stopped: &CancellationToken) {
    type Start = fn(Arc<ServedNetwork>, CancellationToken) -> Running;
    let tasks: [(&'static str, Start); 9] = [
        (Task::WATCH, |served, stop| {
            Box::pin(Watch::new(served).run(stop))
        }),
        ("senders", |served, stop| {
            Box::pin(SenderWatch::new(served).run(stop))
        }),
        ("budgets", |served, stop| {
            Box::pin(BudgetWatch::new(served).run(stop))
        }),
        ("comparison of endpoints", |served, stop| {
            Box::pin(until(&stop, served.rpc.clone().compare()))
        }),
        ("transfers", |served, stop| {
            Box::pin(Transfers::new(served).run(stop))
        }),
        ("approvals", |served, stop| {
            Box::pin(Approver::new(served).run(stop))
        }),
        ("undecided payments", |served, stop| {
            Box::pin(Reconciler::new(served).run(stop))
        }),
        ("unconfigured signers", |served, stop| {
            Box::pin(UnconfiguredSigners::new(served).run(stop))
        }),
        ("pickup", |served, stop| {
            Box::pin(Pickup::new(served).run(stop))
        }),
    ];
    for (name, start) in tasks {
        let (served, stop) = (Arc::clone(served), stopped.clone());
        let task = Task::of(served.policy.network, name);
        supervisor.keep_running(task, move || Some(start(Arc::clone(&served), stop.clone())));
    }
}

/// Keeps those tasks of the process alive that belong to no network.
fn run_process(
    supervisor: &Supervisor,
    stopped: &CancellationToken,
    (ledger, served_networks, waiters): (&Ledger, &[Arc<ServedNetwork>], &Waiters),
) {
    let (stop, handle, networks) = (stopped.clone(), ledger.clone(), served_networks.to_vec());
    supervisor.keep_running(Task::of_process("heartbeat"), move || {
        Some(until(&stop, heartbeat(handle.clone(), networks.clone())))
    });
    let (stop, handle, waiters) = (stopped.clone(), ledger.clone(), waiters.clone());
    supervisor.keep_running(Task::of_process("waiters"), move || {
        Some(until(&stop, waiters.clone().poll_ledger(handle.clone())))
    });
    events::keep_levels(supervisor, stopped, (ledger, served_networks));
    let (stop, handle) = (stopped.clone(), ledger.clone());
    supervisor.keep_running(Task::of_process("sessions"), move || {
        Some(until(&stop, delete_unpaid_sessions(handle.clone())))
    });
}

/// Runs a task until `stop`.
fn until<Task>(stop: &CancellationToken, task: Task) -> impl Future<Output = ()> + use<Task>
where
    Task: Future<Output = ()>,
{
    let ended = stop.clone().run_until_cancelled_owned(task);
    async move {
        ended.await;
    }
}

/// Compares the configuration of a network with the chain.
async fn check(served: &ServedNetwork, signers: &[SignerKey]) -> Result<(), NetworkProblem> {
    served.rpc.check_chain().await?;
    served.rpc.check_overrides().await?;
    served
        .ledger
        .check_genesis(served.policy.network, served.rpc.genesis().await?)
        .await?;
    for asset in &served.policy.assets {
        if let Some(problem) = served.rpc.token_problem(asset).await? {
            return Err(problem.into());
        }
    }
    for signer in signers {
        if served.rpc.has_code(signer.address()).await? {
            return Err(NetworkProblem::SignerHasCode(signer.address()));
        }
    }
    served.note_multicall(served.rpc.has_code(MULTICALL3).await?);
    if let Some(wei) = served.rpc.data_fee().await? {
        served.note_data_fee(wei);
    }
    let proxies = served.rpc.proxies().await?;
    served.note_proxies(proxies);
    served
        .ledger
        .note_proxies(served.policy.network, proxies)
        .await?;
    Ok(())
}

async fn heartbeat(ledger: Ledger, served_networks: Vec<Arc<ServedNetwork>>) {
    let mut interval = tokio::time::interval(ledger.timing().lease_renewal);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let reachable = served_networks
            .iter()
            .filter(|served| served.is_open() && !served.is_disconnected());
        let networks: Vec<_> = reachable.map(|served| served.policy.network).collect();
        if let Err(error) = ledger.renew_process(&networks).await {
            tracing::warn!(error = causes(&error), "process lease not renewed");
        }
    }
}

/// Deletes sessions that ended without a payment.
async fn delete_unpaid_sessions(ledger: Ledger) {
    let mut interval = tokio::time::interval(FORGET_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = ledger.delete_unpaid_sessions().await {
            tracing::warn!(error = causes(&error), "old sessions not deleted");
        }
        if let Err(error) = ledger.forget_gas_spending().await {
            tracing::warn!(error = causes(&error), "old gas spending not deleted");
        }
    }
}

fn addresses(signers: &[SignerKey]) -> Vec<Address> {
    signers.iter().map(SignerKey::address).collect()
}
