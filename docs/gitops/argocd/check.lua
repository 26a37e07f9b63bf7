-- Checks health.lua with samples of each kind, and that argocd-cm.yaml holds it: `lua5.1 docs/gitops/argocd/check.lua`.
-- Argo CD's own interpreter is of version 5.1.
local here = arg[0]:match("^(.*)/[^/]*$") or "."

local function read(name)
  local file = assert(io.open(here .. "/" .. name))
  local text = file:read("*a")
  file:close()
  return text
end

local source = read("health.lua")

-- As Argo CD does it: a global `obj`, and what the script returns. Nothing else is in reach of it but the basics.
local function health(resource)
  local scope = { obj = resource, ipairs = ipairs, pairs = pairs }
  local chunk
  if setfenv then
    chunk = assert(loadstring(source, "health.lua"))
    setfenv(chunk, scope)
  else
    chunk = assert(load(source, "health.lua", "t", scope))
  end
  return chunk()
end

local failed = 0
local function check(what, expected, message, resource)
  local given = health(resource)
  if given.status ~= expected or given.message ~= message then
    failed = failed + 1
    print(("%s: expected %s (%s), got %s (%s)"):format(what, expected, message, tostring(given.status), tostring(given.message)))
  end
end

local function sample(kind, spec, generation, observed, conditions, annotations)
  local status
  if observed ~= nil or conditions ~= nil then
    status = { observedGeneration = observed, conditions = conditions }
  end
  return {
    apiVersion = "herald.dev/v1alpha1",
    kind = kind,
    metadata = { name = "sample", namespace = "shop", generation = generation, annotations = annotations },
    spec = spec,
    status = status,
  }
end

local function of(kind, status, message, reason)
  return { type = kind, status = status, message = message, reason = reason or kind, lastTransitionTime = "2026-01-01T00:00:00Z" }
end

local kinds = {
  Channel = { medium = "email" },
  NotificationTemplate = { category = "loans" },
  RecipientGroup = { managed = true },
  Schedule = { schedule = "0 9 * * MON" },
}
local count = 0
for kind, spec in pairs(kinds) do
  count = count + 1
  check(kind .. " without a status", "Progressing", "Waiting for the operator", sample(kind, spec, 1))
  check(kind .. " with an empty status", "Progressing", "Waiting for the operator", sample(kind, spec, 1, nil, {}))
  check(kind .. " that is ready", "Healthy", "ready", sample(kind, spec, 1, 1, { of("Ready", "True", "ready") }))
  check(kind .. " that was ready before its edit", "Progressing", "Waiting for the operator",
    sample(kind, spec, 2, 1, { of("Ready", "True", "ready") }))
  check(kind .. " that was stalled before its edit", "Progressing", "Waiting for the operator",
    sample(kind, spec, 2, 1, { of("Stalled", "True", "wrong") }))
  check(kind .. " that waits for another", "Progressing", "there is no Channel shop/mail",
    sample(kind, spec, 1, 1, { of("Ready", "False", "not ready"), of("Reconciling", "True", "there is no Channel shop/mail") }))
  check(kind .. " that is not ready", "Progressing", "not ready", sample(kind, spec, 1, 1, { of("Ready", "False", "not ready") }))
  check(kind .. " of which nothing is known", "Progressing", "nobody knows", sample(kind, spec, 1, 1, { of("Ready", "Unknown", "nobody knows") }))
  check(kind .. " without conditions", "Progressing", "Waiting for the operator", sample(kind, spec, 1, 1, {}))
  check(kind .. " that must be edited", "Degraded", "spec is wrong",
    sample(kind, spec, 1, 1, { of("Ready", "False", "not ready"), of("Stalled", "True", "spec is wrong") }))
  check(kind .. " that was mended", "Healthy", "ready",
    sample(kind, spec, 3, 3, { of("Stalled", "False", ""), of("Ready", "True", "ready") }))
  check(kind .. " that is left alone", "Suspended", "The operator leaves it alone: annotation herald.dev/reconcile",
    sample(kind, spec, 2, 1, { of("Ready", "True", "ready") }, { ["herald.dev/reconcile"] = "disabled" }))
  check(kind .. " with other annotations", "Healthy", "ready",
    sample(kind, spec, 1, 1, { of("Ready", "True", "ready") }, { ["herald.dev/reconcile-at"] = "2026-01-01T00:00:00Z" }))
  if kind ~= "RecipientGroup" then
    check(kind .. " that is suspended", "Suspended", "spec.suspend",
      sample(kind, { suspend = true }, 1, 1, { of("Ready", "True", "suspended") }))
    check(kind .. " that is suspended and wrong", "Degraded", "spec is wrong",
      sample(kind, { suspend = true }, 1, 1, { of("Stalled", "True", "spec is wrong") }))
    check(kind .. " that is not suspended", "Healthy", "ready",
      sample(kind, { suspend = false }, 1, 1, { of("Ready", "True", "ready") }))
  end
end
check("Channel whose provider fails", "Healthy", "ready",
  sample("Channel", {}, 1, 1, { of("Ready", "True", "ready"), of("ProviderDegraded", "True", "primary"), of("DeadLetters", "True", "some") }))

-- What a cluster gets is what was tried here.
local settings = read("argocd-cm.yaml")
local indented = ("\n" .. source:gsub("\n$", "")):gsub("\n([^\n])", "\n    %1")
for kind in pairs(kinds) do
  local key = "  resource.customizations.health.herald.dev_" .. kind .. ": |"
  if not settings:find(key .. indented .. "\n", 1, true) then
    failed = failed + 1
    print("argocd-cm.yaml does not hold health.lua for " .. kind)
  end
end

if failed > 0 then
  os.exit(1)
end
print(("health.lua: %d kinds as they should be"):format(count))
