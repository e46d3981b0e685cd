-- Admits one request of whom nothing else limits, by what it was admitted in the last 60 s.
--
-- ARGV: holder, requests a minute
-- Gives: 0, or how long until it may have one more (ms)
local holder, limit = take(), tonumber(take())
local window = window_of(holder)
if window.kept >= limit then
    return until_one_more(window, limit)
end
window.new = 1
write_windows_down()
return 0
