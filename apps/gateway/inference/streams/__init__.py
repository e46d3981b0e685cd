"""An answer that comes piece by piece, on its way from a server to one client or several."""
