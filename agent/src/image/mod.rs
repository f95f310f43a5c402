//! Images: names, a content-addressed store on disk, import from files and pull from registries.
