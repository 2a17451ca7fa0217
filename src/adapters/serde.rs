//! Implements `Serialize` for `TaskInfo` and `TaskId`.

use crate::{TaskId, TaskInfo};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Serializes the fields `name` and `location`. The fields `id`, `kind` and `age_seconds` are present only if their value is known. The
/// field `is_abortable` is present only together with the field `kind`.
///
/// The field `name` is null if the task has no name. The field `abort_requested` is present only if it is true. The field `parent` is
/// present only if the task belongs to a child registry. It contains the ID of this child registry.
impl Serialize for TaskInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let known = usize::from(self.id().is_some()) + 2 * usize::from(self.kind().is_some()) + usize::from(self.age().is_some());
        let more = usize::from(self.abort_requested()) + usize::from(self.parent().is_some());
        let mut fields = serializer.serialize_struct("TaskInfo", 2 + known + more)?;
        if let Some(id) = self.id() {
            fields.serialize_field("id", &id)?;
        }
        fields.serialize_field("name", &self.name())?;
        fields.serialize_field("location", &format_args!("{}", self.location()))?;
        if let Some(kind) = self.kind() {
            fields.serialize_field("kind", &kind)?;
            fields.serialize_field("is_abortable", &self.is_abortable())?;
        }
        if let Some(age) = self.age() {
            // Truncates the age to microseconds.
            #[expect(clippy::cast_precision_loss, reason = "the precision suffices for 285 million years")]
            let seconds = age.as_secs() as f64 + f64::from(age.subsec_micros()) / 1e6;
            fields.serialize_field("age_seconds", &seconds)?;
        }
        if self.abort_requested() {
            fields.serialize_field("abort_requested", &true)?;
        }
        if let Some(parent) = self.parent() {
            fields.serialize_field("parent", &parent)?;
        }
        fields.end()
    }
}

/// Serializes the ID as a string, because JSON numbers in JavaScript cannot represent all 64-bit integers.
impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
