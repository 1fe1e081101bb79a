"""The evidence on disk: the only thing that passes from collecting to judging."""
