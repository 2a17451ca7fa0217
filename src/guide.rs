//! Explains the crate, with one page for each subject. The modules contain no code, and exist only in the documentation.
//!
//! | page | contents |
//! | --- | --- |
//! | [`concepts`] | the terms: registry, task, drain, outcome, loss |
//! | [`migrating`] | the counterparts of `tokio::spawn`, `TaskTracker`, `CancellationToken` and `JoinSet` |
//! | [`shutdown`] | phases, grace period, abort, reserve, and what is lost |
//! | [`observing`] | how to observe, list and abort tasks |
//! | [`handles`] | handles, child registries, services and timers |
//! | [`limits`] | limits on the tasks in flight, and what to do at a limit |
//! | [`queues`] | a queue in memory with a worker, without the loss of accepted items |
//! | [`recipes`] | web frameworks, command-line programs, tests, statics, threads |
//! | [`libraries`] | libraries that start tasks and choose no runtime |
//! | [`child_processes`] | child processes that survive Ctrl-C, and programs that read stdin |
//! | [`deployment`] | a program with its host, without a host, and as a Cloudflare Worker; a checklist |
//! | [`runtimes`] | what each runtime can do, and what happens to its tasks when it is dropped |
//! | [`spawners`] | a spawner for another executor |
//! | [`browser`] | browsers, web workers, Node, Cloudflare Workers |
//! | [`bare_metal`] | programs without the standard library |
//! | [`durable`] | work that must survive a crash |
//! | [`troubleshooting`] | symptoms with their causes |
//! | [`faq`] | frequent questions |

/// Declares a module for each page. Each Markdown file ends with link definitions such as `[limits]: limits.md`, for readers of
/// the repository. In the documentation, these links must point to the modules. This macro therefore writes other definitions
/// of the same links before the text of the file. If a link has two definitions, the first definition applies.
macro_rules! pages {
    ($($page:ident)*) => {
        pages!([concat!($("[", stringify!($page), "]: crate::guide::", stringify!($page), "\n",)*)] $($page)*);
    };
    ([$links:expr] $($page:ident)*) => {$(
        #[doc = $links]
        // The doctests of the pages need these features. The condition is on the text and not on the module, because the
        // documentation would show a condition of the module.
        #[cfg_attr(
            any(not(doctest), all(feature = "async-executor", feature = "smol", feature = "tokio")),
            doc = include_str!(concat!("../docs/guide/", stringify!($page), ".md"))
        )]
        pub mod $page {}
    )*};
}
pages! {
    concepts migrating shutdown observing handles limits queues recipes libraries child_processes deployment runtimes spawners
    browser bare_metal durable troubleshooting faq
}
