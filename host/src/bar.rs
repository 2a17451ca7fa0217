//! The progress bar of a drain, which is shown only on a terminal.

#[cfg(feature = "bar")]
mod imp {
    use background_tasks::TaskInfo;
    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
    use std::fmt;
    use std::io::{self, Write};
    use std::sync::LazyLock;
    use std::time::Duration;

    /// Hidden until a drain starts.
    static BAR: LazyLock<ProgressBar> = LazyLock::new(ProgressBar::hidden);
    const TEMPLATE: &str = "draining [{bar:30}] {pos}/{len} after {elapsed} of {prefix}\n{wide_msg}";

    /// Returns whether stderr is a terminal that can show the bar.
    pub(crate) fn is_available() -> bool {
        !ProgressDrawTarget::stderr().is_hidden()
    }

    pub(crate) fn start(grace: Duration) {
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is valid").progress_chars("=> ");
        BAR.set_style(style);
        BAR.set_prefix(format!("{grace:?}"));
        let _ = writeln!(io::stderr()); // the terminal has just shown `^C`
        BAR.reset();
        BAR.set_draw_target(ProgressDrawTarget::stderr());
    }

    pub(crate) fn update(ended: u64, in_flight: usize, oldest_first: &[TaskInfo]) {
        BAR.set_length(ended + in_flight as u64);
        BAR.set_position(ended);
        let groups = groups(oldest_first).into_iter().take(3).map(|group| group.to_string());
        BAR.set_message(groups.collect::<Vec<_>>().join(", "));
    }

    /// The tasks of one name, or of one call site if they have no name.
    struct Group<'a> {
        oldest: &'a TaskInfo,
        len: usize,
    }

    fn groups(oldest_first: &[TaskInfo]) -> Vec<Group<'_>> {
        let key = |task: &TaskInfo| (task.name(), task.name().is_none().then(|| task.location()));
        let mut groups: Vec<Group<'_>> = Vec::new();
        for task in oldest_first {
            match groups.iter_mut().find(|group| key(group.oldest) == key(task)) {
                Some(group) => group.len += 1,
                None => groups.push(Group { oldest: task, len: 1 }),
            }
        }
        groups
    }

    impl fmt::Display for Group<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { oldest, len } = self;
            write!(f, "{len} × ")?;
            match oldest.name() {
                Some(name) => f.write_str(name)?,
                None => oldest.fmt(f)?,
            }
            oldest.age().map_or(Ok(()), |age| write!(f, " for {age:.1?}"))
        }
    }

    pub(crate) fn finish() {
        BAR.finish_and_clear();
    }

    /// Hides the bar while `write` runs, so that the text appears above the bar.
    pub(crate) fn suspend(write: impl FnOnce()) {
        BAR.suspend(write);
    }
}

#[cfg(not(feature = "bar"))]
mod imp {
    use background_tasks::TaskInfo;
    use std::time::Duration;

    pub(crate) fn is_available() -> bool {
        false
    }

    pub(crate) fn start(_grace: Duration) {}

    pub(crate) fn update(_ended: u64, _in_flight: usize, _oldest_first: &[TaskInfo]) {}

    pub(crate) fn finish() {}

    pub(crate) fn suspend(write: impl FnOnce()) {
        write();
    }
}

pub(crate) use imp::{finish, is_available, start, suspend, update};
