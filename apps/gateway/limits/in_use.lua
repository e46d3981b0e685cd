-- Tells how many places are taken on each server, and at the end how many requests wait for the model.
--
-- ARGV: model, servers
local model, found = take(), {}
while position < #ARGV do
    found[#found + 1] = running('@' .. take())
end
found[#found + 1] = redis.call('ZCARD', 'limits:room:' .. model)
return found
