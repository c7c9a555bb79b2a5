"""The command `embedcache`: parse, call one method of `Project`, print."""
