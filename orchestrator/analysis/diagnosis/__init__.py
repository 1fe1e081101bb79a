"""One boot of somebody's own domain: where its time goes, and what helps."""
