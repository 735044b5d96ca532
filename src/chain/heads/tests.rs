//! The tracker over a simulated node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use alloy::primitives::{U64, U256};
use axum::extract::State;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::*;
use crate::protocol::Network;

/// Blocks by hash, and the newest one.
#[derive(Debug, Default)]
struct Node {
    blocks: HashMap<B256, Head>,
    newest: Head,
}

/// An HTTP server for the node; it stops when dropped.
struct Chain {
    node: Arc<Mutex<Node>>,
    rpc: Rpc,
    _server: AbortOnDropHandle<()>,
}

/// The hash of the block at height `number` on `branch`.
fn hash(branch: u8, number: u64) -> B256 {
    B256::from(U256::from(branch) << 64 | U256::from(number))
}

impl Chain {
    async fn start() -> Self {
        let node = Arc::new(Mutex::new(Node::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&node));
        let server = TaskTracker::new().spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        let endpoints = crate::chain::Endpoints {
            urls: &[url],
            send_urls: &[],
            calls_per_second: None,
            confirm_with: 1,
        };
        Self {
            node,
            rpc: Rpc::new(Network::from_chain_id(1), endpoints).unwrap(),
            _server: AbortOnDropHandle::new(server),
        }
    }

    fn tracker(&self) -> HeadTracker {
        HeadTracker::new(self.rpc.clone())
    }

    /// Adds the blocks `from..=to` to `branch`; the first has the parent `parent`, the last becomes the newest block.
    fn grow(&self, branch: u8, from: u64, to: u64, parent: B256) {
        let mut node = self.node.lock().unwrap();
        let mut parent = parent;
        for number in from..=to {
            node.newest = Head {
                number,
                hash: hash(branch, number),
                parent,
                ..Head::default()
            };
            parent = node.newest.hash;
            let newest = node.newest;
            node.blocks.insert(newest.hash, newest);
        }
    }

    /// Makes this block the node's newest.
    fn show(&self, newest: B256) {
        let mut node = self.node.lock().unwrap();
        node.newest = node.blocks[&newest];
    }

    fn forget(&self, block: B256) -> Head {
        self.node.lock().unwrap().blocks.remove(&block).unwrap()
    }

    fn learn(&self, block: Head) {
        self.node.lock().unwrap().blocks.insert(block.hash, block);
    }
}

async fn answer(State(node): State<Arc<Mutex<Node>>>, Json(call): Json<Value>) -> Json<Value> {
    let node = node.lock().unwrap();
    let block = match call["method"].as_str() {
        Some("eth_getBlockByNumber") if call["params"][0] == "latest" => Some(&node.newest),
        Some("eth_getBlockByNumber") => {
            let wanted: U64 = serde_json::from_value(call["params"][0].clone()).unwrap();
            let mut block = Some(&node.newest);
            while let Some(above) = block.filter(|block| block.number > wanted.to::<u64>()) {
                block = node.blocks.get(&above.parent);
            }
            block
        }
        Some("eth_getBlockByHash") => {
            let wanted: B256 = serde_json::from_value(call["params"][0].clone()).unwrap();
            node.blocks.get(&wanted)
        }
        other => panic!("unexpected method {other:?}"),
    };
    let block = block.map(|block| {
        json!({"number": U64::from(block.number), "hash": block.hash, "parentHash": block.parent, "timestamp": "0x0"})
    });
    Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": block}))
}

fn hashes(heads: &[Head]) -> Vec<B256> {
    heads.iter().map(|head| head.hash).collect()
}

fn branch(branch: u8, numbers: std::ops::RangeInclusive<u64>) -> Vec<B256> {
    numbers.map(|number| hash(branch, number)).collect()
}

#[tokio::test]
async fn first_poll_skips_all_earlier_blocks() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    assert_eq!(tracker.head(), None);
    let first = tracker.advance().await.unwrap().unwrap();
    assert_eq!(hashes(&first.added), branch(0, 10..=10));
    assert!(first.removed.is_empty() && first.skipped);
    assert_eq!(tracker.advance().await, Ok(None), "nothing new");
}

#[tokio::test]
async fn poll_adds_all_blocks_since_the_last_one_oldest_first() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    chain.grow(0, 11, 14, hash(0, 10));
    let advance = tracker.advance().await.unwrap().unwrap();
    assert_eq!(hashes(&advance.added), branch(0, 11..=14));
    assert!(advance.removed.is_empty() && !advance.skipped);
    assert_eq!(tracker.kept(12), Some(hash(0, 12)));
    assert_eq!(tracker.kept(15), None);
}

#[tokio::test]
async fn reorg_removes_orphaned_blocks_and_adds_new_ones() {
    for (to, what) in [
        (15, "a longer branch"),
        (14, "one as long"),
        (13, "a shorter one"),
    ] {
        let chain = Chain::start().await;
        chain.grow(0, 1, 10, B256::ZERO);
        let mut tracker = chain.tracker();
        tracker.advance().await.unwrap();
        chain.grow(0, 11, 14, hash(0, 10));
        tracker.advance().await.unwrap();
        chain.grow(1, 12, to, hash(0, 11));
        let advance = tracker.advance().await.unwrap().unwrap();
        assert_eq!(hashes(&advance.added), branch(1, 12..=to), "{what}");
        let mut removed = advance.removed;
        removed.sort_unstable();
        assert_eq!(removed, branch(0, 12..=14), "{what}");
        assert!(!advance.skipped, "{what}");
        assert_eq!(tracker.kept(11), Some(hash(0, 11)), "{what}");
        assert_eq!(tracker.kept(12), Some(hash(1, 12)), "{what}");
        assert_eq!(
            tracker.head().map(|head| head.hash),
            Some(hash(1, to)),
            "{what}"
        );
        if to < 14 {
            assert_eq!(tracker.kept(14), None, "{what}");
        }
    }
}

#[tokio::test]
async fn lagging_node_causes_no_reorg() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    chain.grow(0, 11, 14, hash(0, 10));
    tracker.advance().await.unwrap();
    chain.show(hash(0, 12));
    assert_eq!(tracker.advance().await, Ok(None));
    assert_eq!(tracker.kept(14), Some(hash(0, 14)));
}

#[tokio::test]
async fn reorg_below_the_kept_blocks_restarts_the_tracker() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    chain.grow(1, 5, 12, hash(0, 4));
    let advance = tracker.advance().await.unwrap().unwrap();
    assert_eq!(hashes(&advance.added), branch(1, 12..=12));
    assert!(advance.skipped);
    assert_eq!(tracker.kept(10), None, "nothing of the old branch");
}

#[tokio::test]
async fn late_poll_reports_skipped_blocks_and_memory_is_bounded() {
    let far = u64::try_from(BLOCKS_KEPT).unwrap();
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();

    chain.grow(0, 11, 10 + far, hash(0, 10));
    let advance = tracker.advance().await.unwrap().unwrap();
    assert_eq!((advance.added.len(), advance.skipped), (BLOCKS_KEPT, false));
    assert_eq!(tracker.recent.len(), BLOCKS_KEPT);
    assert_eq!(tracker.kept(10), None, "the oldest block was dropped");

    chain.grow(0, 11 + far, 11 + 2 * far, hash(0, 10 + far));
    let advance = tracker.advance().await.unwrap().unwrap();
    assert_eq!((advance.added.len(), advance.skipped), (1, true));

    chain.show(hash(0, 3));
    let advance = tracker.advance().await.unwrap().unwrap();
    assert!(advance.skipped, "a chain that was reset");
}

#[tokio::test]
async fn missing_parent_fails_one_poll_and_loses_no_block() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    chain.grow(0, 11, 14, hash(0, 10));
    let missing = chain.forget(hash(0, 12));
    let failed = tracker.advance().await;
    assert_eq!(failed, Err(RpcError::Malformed("eth_getBlockByHash")));
    assert_eq!(tracker.head().map(|head| head.number), Some(10));
    chain.learn(missing);
    let advance = tracker.advance().await.unwrap().unwrap();
    assert_eq!(hashes(&advance.added), branch(0, 11..=14));
}

#[tokio::test]
async fn parent_that_stays_missing_restarts_the_tracker() {
    let chain = Chain::start().await;
    let mut tracker = chain.tracker();
    chain.grow(0, 1, 10, hash(0, 0));
    tracker.advance().await.unwrap();
    chain.grow(0, 11, 13, hash(0, 10));
    chain.forget(hash(0, 12));
    for _ in 1..MISSED_MAX {
        assert!(tracker.advance().await.is_err());
    }
    let advance = tracker.advance().await.unwrap().unwrap();
    assert!(advance.skipped);
    assert_eq!(hashes(&advance.added), [hash(0, 13)]);
}

#[tokio::test]
async fn blocks_are_compared_however_deep() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 300, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    let recorded = [(300, hash(0, 300)), (250, hash(1, 250)), (7, hash(0, 7))];
    let compared = tracker.compare(&recorded, 200).await;
    let mut canonical = compared.canonical;
    canonical.sort_unstable();
    assert_eq!(canonical, [hash(0, 7), hash(0, 300)]);
    assert_eq!(compared.orphaned, [(250, hash(1, 250))]);

    // The chain is replaced from block 2 on, unseen: what was compared before counts for nothing.
    chain.grow(1, 2, 450, hash(0, 1));
    tracker.advance().await.unwrap();
    let mut compared = tracker.compare(&recorded, 200).await;
    compared.orphaned.sort_unstable();
    assert_eq!(compared.canonical, [hash(1, 250)]);
    assert_eq!(compared.orphaned, [(7, hash(0, 7)), (300, hash(0, 300))]);
}
