"""What survives a kill.

files.py        files written whole, lines of JSON that a crash cuts at most once, hashes
checkpoints.py  a training state, written whole or not at all
logp_store.py   the file of the reference cache
locks.py        locks between processes
token_files.py  token ids on a disk, mapped
embedded.py     where the embedded model and data are
"""
