//! Limits for results. Not every database stores or returns larger or deeper ones, and a result that cannot be stored blocks all others.

use serde_json::Value;

pub(super) const MAX_SIZE: usize = 32 << 20;
const MAX_DEPTH: usize = 100;

/// Returns a result that every database can store, and its size in bytes.
pub(super) fn storable(result: Result<Value, String>) -> (Result<Value, String>, usize) {
    let result = match result {
        Ok(value) => match measure(&value) {
            (_, size) if size > MAX_SIZE => Ok(Value::String(format!("cannot store the result: it has {size} bytes"))),
            (depth, _) if depth > MAX_DEPTH => {
                Ok(Value::String(format!("cannot store the result: it is nested {depth} levels deep")))
            }
            (_, size) => return (Ok(value), size),
        },
        Err(mut text) => {
            text.truncate(text.floor_char_boundary(MAX_SIZE));
            Err(text)
        }
    };
    let size = result.as_ref().map_or_else(String::len, |_| 0);
    (result, size)
}

/// Returns the nesting depth and the approximate size in bytes.
fn measure(value: &Value) -> (usize, usize) {
    let add =
        |(depth, size): (usize, usize), (inner_depth, inner_size): (usize, usize)| (depth.max(inner_depth + 1), size + inner_size);
    match value {
        Value::String(text) => (0, text.len() + 8),
        Value::Array(values) => values.iter().map(measure).fold((1, 8), add),
        Value::Object(fields) => fields.iter().fold((1, 8), |all, (name, value)| add(add(all, (0, name.len())), measure(value))),
        _ => (0, 8),
    }
}
