-- Uses up a nonce for who is let in by another call, or by none.
--
-- ARGV: as `use_up` takes them (nonces.lua)
-- Gives: what that does
return use_up(take(), take(), take(), take())
