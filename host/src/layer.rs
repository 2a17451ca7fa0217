//! A layer that holds a guard for each request.
