//! Faults of RPC providers: rate limits, lag, inconsistent nodes.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Fault;

/// Calls to flaky proxies so far, over all proxies.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// One read in ten is answered with a missing block, one call in ten with 429, and one in fifty is dropped. `None`: forward it.
fn flaky_answer(request: &Value) -> Option<Response> {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let sends = request["method"] == "eth_sendRawTransaction";
    match count % 50 {
        49 => Some(break_connection()),
        count if count % 10 == 3 && !sends => {
            let (code, message) = BLOCK_NOT_FOUND[count / 10 % BLOCK_NOT_FOUND.len()];
            Some(refusal(request, code, message))
        }
        count if count % 10 == 7 => Some(StatusCode::TOO_MANY_REQUESTS.into_response()),
        _ => None,
    }
}

const BLOCK_NOT_FOUND: [(i64, &str); 3] = [
    (
        -32602,
        "BlockOutOfRangeError: block height is 7 but requested was 8",
    ),
    (-32000, "header not found"),
    (-32001, "block not found"),
];

/// Breaks the connection before the answer, by unwinding its task.
fn break_connection() -> Response {
    std::panic::resume_unwind(Box::new("dropped"))
}

/// A JSON-RPC error.
pub(super) fn refusal(request: &Value, code: i64, message: &str) -> Response {
    let error = json!({"code": code, "message": message});
    axum::Json(json!({"jsonrpc": "2.0", "id": request["id"], "error": error})).into_response()
}

/// What replaces a call.
pub(super) enum Substitute {
    /// This answer.
    Answer(Response),
    /// The answer to another call.
    Call(Value),
    /// Nothing: the call is forwarded.
    Nothing,
}

/// What a fault does to a call.
pub(super) fn substitute(fault: Fault, request: &Value) -> Substitute {
    let shorter = |members: usize| {
        let mut request = request.clone();
        let parameters = request["params"].as_array_mut()?;
        (parameters.len() > members).then(|| parameters.truncate(members))?;
        Some(request)
    };
    let refused = |why: &str| Substitute::Answer(refusal(request, -32602, why));
    if fault == Fault::Flaky {
        return flaky_answer(request).map_or(Substitute::Nothing, Substitute::Answer);
    }
    let without_block =
        fault == Fault::BlockOverridesRefused || fault == Fault::BlockOverridesIgnored;
    match shorter(if without_block { 3 } else { 2 }) {
        None => Substitute::Nothing,
        Some(_) if fault == Fault::OverridesRefused => {
            refused("too many arguments, want at most 2")
        }
        Some(_) if fault == Fault::BlockOverridesRefused => {
            refused("too many arguments, want at most 3")
        }
        Some(call) => Substitute::Call(call),
    }
}

/// Adds a data fee to receipts.
pub(super) fn charge(result: &mut Value, wei: u64) {
    if let Value::Array(receipts) = result {
        for receipt in receipts {
            charge(receipt, wei);
        }
    } else if let Value::Object(receipt) = result {
        receipt.insert("l1Fee".to_owned(), format!("0x{wei:x}").into());
    }
}

/// Sets every member of that name to null, or removes it.
pub(super) fn blank(value: &mut Value, name: &str, remove: bool) {
    if let Value::Object(members) = value {
        if remove {
            members.remove(name);
        } else if let Some(member) = members.get_mut(name) {
            *member = Value::Null;
        }
        for member in members.values_mut() {
            blank(member, name, remove);
        }
    } else if let Value::Array(items) = value {
        for item in items {
            blank(item, name, remove);
        }
    }
}
