//! Compile-time checks of map layouts.

/// Asserts a type's size and alignment, and that its fields leave no hole that would carry stray kernel memory.
#[macro_export]
macro_rules! assert_layout {
    ($type:ty, size = $size:expr, align = $align:expr, fields = [$($field:ty),* $(,)?]) => {
        const _: () = {
            assert!(size_of::<$type>() == $size, "the size of a map layout changed");
            assert!(align_of::<$type>() == $align, "the alignment of a map layout changed");
            assert!(0 $(+ size_of::<$field>())* == $size, "a map layout has implicit padding");
        };
    };
}
