defmodule Barytherium.ReportsTest do
  # Everything that can be started, and everything that is told about it, must not show a secret.
  use Barytherium.ClientCase, async: false

  alias Barytherium.{DefaultCallbackHandler, Network}

  @secret "hunter2"

  defmodule Handler do
    use Barytherium.Consumer, subscribe: "/queue/a", backoff: {60_000, 60_000}

    @impl true
    def handle_message(_frame, state), do: {:ack, state}
  end

  # A handler of :logger that gets every report as it is.
  defmodule Reports do
    def log(event, %{config: test}), do: send(test, {:report, event})
  end

  setup do
    Process.flag(:trap_exit, true)
    level = :logger.get_primary_config().level
    :logger.set_primary_config(:level, :all)
    :ok = :logger.add_handler(__MODULE__, Reports, %{config: self()})

    on_exit(fn ->
      :logger.remove_handler(__MODULE__)
      :logger.set_primary_config(:level, level)
    end)
  end

  defp children(port, tls_port) do
    url = "stomp://me:#{@secret}@127.0.0.1:#{port}"
    tls_url = "stomp+ssl://me:#{@secret}@127.0.0.1:#{tls_port}"
    tls = [password: @secret, verify: :verify_none]
    network = [self(), "127.0.0.1", tls_port, [secure: true] ++ tls]

    [
      {Client, url: url, passcode: @secret, name: A},
      {Client, url: tls_url, ssl: tls, name: B},
      {Handler, url: url, init_arg: @secret, headers: [{"client-id", @secret}], handlers: 2},
      Supervisor.child_spec({Network, network}, id: :network),
      {DefaultCallbackHandler, ["127.0.0.1", port, "/", [{"passcode", @secret}]]}
    ]
  end

  test "no start argument, state, status, dictionary or report at any level shows one" do
    {listener, _url} = broker()
    {tls_listener, _url} = broker()
    children = children(Peer.port(listener), Peer.port(tls_listener))
    hidden(Enum.map(children, &Supervisor.child_spec(&1, [])))
    options = [strategy: :one_for_one, max_restarts: 100]
    {:ok, supervisor} = Supervisor.start_link(children, options)
    _peers = for _n <- 1..3, do: Peer.accept(listener)

    pids = below(supervisor)
    assert length(pids) > 10
    hidden(Supervisor.which_children(supervisor))

    for {id, _, _, _} <- Supervisor.which_children(supervisor),
        do: hidden(:supervisor.get_childspec(supervisor, id))

    for pid <- pids do
      hidden(Process.info(pid, [:dictionary, :messages]))

      # Processes that connect are no GenServers.
      with {:ok, status} <- status(pid), do: hidden(status)
    end

    # Crashes, and the reports about them.
    monitors = Enum.map(pids, &Process.monitor/1)
    for pid <- pids, do: Process.exit(pid, :crash)
    for pid <- below(supervisor), do: Process.exit(pid, :kill)

    for monitor <- monitors,
        do: assert_receive({:DOWN, ^monitor, :process, _pid, _reason}, 10_000)

    Supervisor.stop(supervisor)
    reports()
  end

  defp status(pid) do
    if :proc_lib.initial_call(pid) |> is_tuple() and Process.alive?(pid),
      do: {:ok, :sys.get_status(pid, 1_000)},
      else: :none
  catch
    :exit, _reason -> :none
  end

  defp below(pid) do
    {:links, links} = Process.info(pid, :links)
    Enum.uniq(Enum.flat_map(links, &below(&1, [self(), pid], 4)))
  end

  defp below(pid, seen, depth) when is_pid(pid) and depth > 0 do
    with false <- pid in seen, {:links, links} <- Process.info(pid, :links) do
      [pid | Enum.flat_map(links, &below(&1, [pid | seen], depth - 1))]
    else
      _seen -> []
    end
  end

  defp below(_other, _seen, _depth), do: []

  defp reports do
    receive do
      {:report, event} ->
        hidden(event)
        reports()
    after
      0 -> :ok
    end
  end

  defp hidden(term),
    do: refute(inspect(term, limit: :infinity, printable_limit: :infinity) =~ @secret)
end
