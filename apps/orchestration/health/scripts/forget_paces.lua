-- Forgets how fast servers were for models that they don't hold any more, or at the address where they were.
--
-- ARGV: keys of fleet:paces and fleet:answers
for _, key in ipairs(ARGV) do
    redis.call('HDEL', 'fleet:paces', key)
    redis.call('HDEL', 'fleet:answers', key)
end
return #ARGV
