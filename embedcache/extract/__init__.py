"""The pass over the images: everything the stores lack is encoded once and stored."""
