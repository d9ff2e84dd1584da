//! Block backends: media, root state, attach.
