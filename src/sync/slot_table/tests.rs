use super::*;
use crate::report::TaskKind;
use core::panic::Location;

#[test]
fn a_chunk_is_used_whole_before_the_table_grows() {
    let (table, freed) = (SlotTable::new(), FreedSlots::new());
    let info =
        SpawnInfo { location: Location::caller(), name: None, kind: TaskKind::Future, critical: false, without_permit: false };
    let chunks = || table.0.with(|rows| rows.chunks.len());
    for _ in 0..SLOTS_PER_CHUNK {
        table.insert(&freed, &(), info, true, || false);
        assert_eq!(chunks(), 1);
    }
    let target = table.insert(&freed, &(), info, true, || false);
    assert_eq!(chunks(), 2);
    freed.push(target.slot.as_ref().unwrap());
    for _ in 0..SLOTS_PER_CHUNK {
        table.insert(&freed, &(), info, true, || false);
    }
    assert_eq!(chunks(), 2, "a freed slot is used again");
}
