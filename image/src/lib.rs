//! The cluster image: blobs, index, the self-extracting file, safe unpack
