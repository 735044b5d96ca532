//! What providers of RPC do to calls: limits, lag, nodes of a pool that are not alike.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Calls of a provider in trouble so far, over all proxies.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// One read in ten is answered with a block that is not found, one in ten with 429, and one call in fifty is dropped. `None`: it passes.
pub(super) fn of_one_in_ten(request: &Value) -> Option<Response> {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let sends = request["method"] == "eth_sendRawTransaction";
    match count % 50 {
        49 => Some(dropped()),
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

/// The connection breaks before the answer: whoever serves it is gone, without a word.
fn dropped() -> Response {
    std::panic::resume_unwind(Box::new("dropped"))
}

/// A JSON-RPC error.
pub(super) fn refusal(request: &Value, code: i64, message: &str) -> Response {
    let error = json!({"code": code, "message": message});
    axum::Json(json!({"jsonrpc": "2.0", "id": request["id"], "error": error})).into_response()
}

/// The call without its state overrides, if it has any.
pub(super) fn without_overrides(request: &Value) -> Option<Value> {
    let mut request = request.clone();
    let parameters = request["params"].as_array_mut()?;
    (parameters.len() > 2).then(|| parameters.truncate(2))?;
    Some(request)
}

/// Sets every member of that name to null, or takes it out.
pub(super) fn spoil(value: &mut Value, name: &str, remove: bool) {
    match value {
        Value::Object(members) => {
            if remove {
                members.remove(name);
            } else if let Some(member) = members.get_mut(name) {
                *member = Value::Null;
            }
            for member in members.values_mut() {
                spoil(member, name, remove);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| spoil(item, name, remove)),
        _ => {}
    }
}
