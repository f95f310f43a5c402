//! Map layouts, keys, drop reasons and routing decisions.
#![no_std]
