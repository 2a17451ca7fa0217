use super::*;
use core::panic::Location;

#[test]
fn a_chunk_is_used_whole_before_the_table_grows() {
    // The table never frees slots. If no static refers to the slots, Miri reports a leak.
    static TABLE: SlotTable<()> = SlotTable::new();
    let (table, freed) = (&TABLE, FreedSlots::new());
    let info = SpawnInfo::new(None, Location::caller());
    let chunks = || table.0.with(|rows| rows.chunks.len());
    for _ in 0..SLOTS_PER_CHUNK {
        table.insert(&freed, &(), info, PermitKind::Own, true, || false);
        assert_eq!(chunks(), 1);
    }
    let target = table.insert(&freed, &(), info, PermitKind::Own, true, || false);
    assert_eq!(chunks(), 2);
    freed.push(target.slot.as_ref().unwrap());
    for _ in 0..SLOTS_PER_CHUNK {
        table.insert(&freed, &(), info, PermitKind::Own, true, || false);
    }
    assert_eq!(chunks(), 2, "a freed slot is used again");
}
