-- Looks answers up for all requests of one turn; where there is none, gives the first who asks the lead.
--
-- ARGV: the mark of a lead of this worker, lease (ms), then the keys
-- Gives for each key: the entry; 1 if the asker leads now; 0 if somebody else does and the entry is still to come
--
-- The mark stands where the entry will: keeping the entry ends the lead.
local found = {}
for i = 3, #ARGV do
    local entry = redis.call('GET', ARGV[i])
    if not entry then
        redis.call('SET', ARGV[i], ARGV[1], 'PX', ARGV[2])
        found[#found + 1] = 1
    elseif string.sub(entry, 1, 5) == 'lead:' then
        found[#found + 1] = 0
    else
        found[#found + 1] = entry
    end
end
return found
