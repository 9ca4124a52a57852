# Run by script/chaos. Kills processes of clients and consumers at random, while messages are published and
# handled, and harms their connections. At the end nothing that was confirmed, or accepted by a spool, may be missing, nothing may have
# been acknowledged that was not handled, no message of a key may have been handled before an earlier one, and
# nothing may be left behind.
Logger.configure(level: :none)

defmodule Chaos do
  alias Barytherium.{Client, Native, QueueBroker}

  defmodule Handler do
    use Barytherium.Consumer, subscribe: {"/queue/chaos", prefetch: 50}, backoff: {10, 200}

    @impl true
    def handle_message(%{body: body}, table) do
      :ets.insert(table, {body})
      # Now and then it takes a while, or fails.
      case :rand.uniform(2_000) do
        1 -> raise "chaos"
        2 -> Process.sleep(50)
        _often -> :ok
      end

      {:ack, table}
    end
  end

  defmodule Ordered do
    # The number of a batch is the key: its messages are published on one connection, so the broker has them in order.
    use Barytherium.Consumer, handlers: 3, key: {:body, 0, 10}, backoff: {10, 200}

    @impl true
    def handle_message(%{body: <<key::binary-size(10), ?., number::binary>> = body}, table) do
      number = String.to_integer(number)

      # It may be handled again, but not for the first time after a later one.
      unless :ets.member(table, body) do
        case :ets.lookup(table, {:last, key}) do
          [{_key, last}] when last > number -> :ets.insert(table, {{:disorder, body}, last})
          _earlier -> :ets.insert(table, {{:last, key}, number})
        end
      end

      if :rand.uniform(500) == 1, do: Process.sleep(20)
      :ets.insert(table, {body})
      {:ack, table}
    end
  end

  @publishers 4
  @consumers 2
  @subscribers 3
  @batch 20
  # The most seconds that it may take until everything is handled after the last fault.
  @patience 60

  def run(broker, kills, version, transport) do
    handled = :ets.new(:handled, [:set, :public])
    confirmed = :ets.new(:confirmed, [:set, :public])
    {urls, fault, info} = start(broker, transport, fn body -> :ets.member(handled, body) end)
    # The first look-up of a name starts processes of the VM.
    {:ok, _address} = :inet.getaddr('localhost', :inet)
    before = counts()

    {:ok, supervisor} =
      Supervisor.start_link(children(urls, handled, version, broker),
        strategy: :one_for_one,
        max_restarts: 1_000_000
      )

    running = :atomics.new(1, [])

    publishing =
      for n <- 1..@publishers,
          do: Task.async(fn -> publish(:"publisher#{n}", n, 1, confirmed, running) end)

    killed = for n <- 1..kills, do: harm(n, supervisor, fault)
    :atomics.put(running, 1, 1)
    Task.await_many(publishing, 120_000)
    missing = await(confirmed, handled, System.monotonic_time(:second) + @patience)
    Supervisor.stop(supervisor)
    left = left(before, 100)
    File.rm_rf!(Path.dirname(spool(1)))
    %{violations: violations} = info.()
    disorder = :ets.match_object(handled, {{:disorder, :_}, :_})
    violations = if ordered?(broker), do: violations ++ disorder, else: violations

    IO.puts(
      "#{Enum.count(killed, &(&1 == :kill))} kills and #{Enum.count(killed, &(&1 != :kill))} faults: #{:ets.info(confirmed, :size)} messages confirmed, #{handled(handled)} handled"
    )

    IO.inspect(Enum.frequencies(killed), label: "what")

    IO.puts(
      "#{length(missing)} confirmed and not handled, #{length(violations)} violations, left behind: #{inspect(left)}"
    )

    for violation <- Enum.take(violations, 10), do: IO.inspect(violation)
    if missing != [] or violations != [] or left != %{}, do: System.halt(1)
  end

  defp ordered?(broker), do: broker != "rabbitmq"

  defp handled(table),
    do: :ets.select_count(table, [{{:"$1"}, [{:is_binary, :"$1"}], [true]}])

  defp start("scripted", "tcp", handled?) do
    {:ok, broker} = QueueBroker.start_link(handled?: handled?)

    fault = fn ->
      QueueBroker.fault(broker, Enum.random([:cut, :cut, :silence, :error, :odd_receipts]))
    end

    {["stomp://127.0.0.1:#{QueueBroker.port(broker)}"], fault, fn -> QueueBroker.info(broker) end}
  end

  # Through a proxy, which cuts and resets.
  defp start(name, transport, _handled?) do
    kind =
      Map.fetch!(
        %{"rabbitmq" => Barytherium.Brokers.RabbitMQ, "activemq" => Barytherium.Brokers.ActiveMQ},
        name
      )

    broker = Barytherium.Broker.start!(kind)
    System.at_exit(fn _status -> Barytherium.Broker.stop(broker) end)
    {scheme, port, path} = listener(transport, broker)
    {proxy, port} = Barytherium.FaultProxy.start!(port)
    tls? = transport in ["tls", "wss"]
    own = if tls?, do: [cacertfile: broker.tls.cacertfile], else: []

    fault = fn ->
      Barytherium.FaultProxy.set(proxy, {:reset_after, 200})
      Process.sleep(20)
      Barytherium.FaultProxy.set(proxy, :pass)
      :reset
    end

    url = "#{scheme}://guest:guest@localhost:#{port}#{path}"
    {[{url, own}], fault, fn -> %{violations: []} end}
  end

  defp listener("tcp", broker), do: {"stomp", broker.port, ""}
  defp listener("tls", broker), do: {"stomp+ssl", broker.tls.port, ""}
  # ActiveMQ's path may be anything.
  defp listener("ws", broker), do: {"ws", broker.web.port, "/ws"}
  defp listener("wss", broker), do: {"wss", broker.web.tls_port, "/ws"}

  defp children(urls, handled, version, broker) do
    opts = [
      urls: urls,
      versions: [version],
      heart_beat: {500, 500},
      heartbeat_receive_allowance: 1_500
    ]

    publishers =
      for n <- 1..@publishers do
        spool = if spools?(n), do: [spool: spool(n)], else: []
        {Client, opts ++ spool ++ [name: :"publisher#{n}", backoff: {10, 200}]}
      end

    consumer = [init_arg: handled, concurrency: @consumers, shutdown: 5_000]

    consumers =
      for handlers <- [1, 3],
          do: {Handler, opts ++ consumer ++ [name: :"handlers#{handlers}", handlers: handlers]}

    ordered =
      for ack <- [:client_individual, :client] do
        # Otherwise a new connection gets later messages before the broker knows that the old one has ended.
        # ActiveMQ and the scripted broker can do that. RabbitMQ would make the queue exclusive, and refuse.
        exclusive = [{"exclusive", "true"}, {"activemq.exclusive", "true"}]
        headers = if ordered?(broker), do: exclusive, else: []
        subscribe = {"/queue/#{ack}", ack: ack, prefetch: 50, headers: headers}
        consumer = [init_arg: handled, shutdown: 5_000, name: ack, subscribe: subscribe]
        {Ordered, opts ++ consumer}
      end

    # They use the publishers' clients, and end all the time.
    subscribers =
      for n <- 1..@subscribers do
        start = {Task, :start_link, [__MODULE__, :subscribe, [:"publisher#{n}", handled]]}
        %{id: {:subscriber, n}, start: start, restart: :permanent}
      end

    publishers ++ consumers ++ ordered ++ subscribers
  end

  def subscribe(client, handled) do
    opts = [ack: Enum.random([:client, :client_individual]), prefetch: 10]

    case Client.subscribe(client, "/queue/chaos", opts) do
      {:ok, subscription} ->
        Process.send_after(self(), :over, :rand.uniform(300))
        take(client, subscription, handled)

      {:error, _error} ->
        Process.sleep(50)
    end
  catch
    # The client was killed.
    :exit, _reason -> Process.sleep(50)
  end

  defp take(client, subscription, handled) do
    receive do
      {:barytherium, :messages, {frames, ^subscription}} ->
        for frame <- frames, do: :ets.insert(handled, {frame.body})
        # Some are left for others.
        if :rand.uniform(5) > 1, do: Client.ack(client, frames)
        take(client, subscription, handled)

      :over ->
        if :rand.uniform(2) == 1, do: Client.unsubscribe(client, subscription)
    end
  end

  # Unique messages, until there are no more faults. What is not confirmed is left alone.
  defp publish(client, publisher, n, confirmed, running) do
    queue = Enum.random(["/queue/chaos", "/queue/client_individual", "/queue/client"])
    key = "#{publisher}." <> String.pad_leading("#{n}", 8, "0")
    messages = for i <- 1..@batch, do: {queue, "#{key}.#{i}"}

    left = publish_some(client, messages, spools?(publisher))

    for {_destination, body} = message <- messages,
        message not in left,
        do: :ets.insert(confirmed, {body})

    if :atomics.get(running, 1) == 0,
      do: publish(client, publisher, n + @batch, confirmed, running)
  end

  # What is neither confirmed nor accepted.
  defp publish_some(client, messages, false) do
    case Client.publish_many(client, messages, wait: true, timeout: 2_000) do
      :ok -> []
      {:error, _error, left} -> left
    end
  catch
    :exit, _reason -> messages
  end

  defp publish_some(client, messages, true) do
    # The disk takes more than the broker and the handlers.
    Process.sleep(10)

    case Client.publish_many_async(client, messages, to: :nobody, timeout: 2_000) do
      {:ok, _reference} -> []
      {:error, _error} -> messages
    end
  catch
    :exit, _reason -> messages
  end

  # Every other publisher does not wait, and its messages are kept in files.
  defp spools?(n), do: rem(n, 2) == 0
  defp spool(n), do: Path.join([System.tmp_dir!(), "barytherium-chaos-#{System.pid()}", "#{n}"])

  defp harm(_n, supervisor, fault) do
    Process.sleep(:rand.uniform(15))

    if :rand.uniform(5) == 1 do
      fault.()
    else
      with pid when is_pid(pid) <- random(supervisor), do: Process.exit(pid, :kill)
      :kill
    end
  end

  # Any process that a client consists of.
  defp random(supervisor) do
    {:links, links} = Process.info(supervisor, :links)

    children =
      for pid <- links,
          is_pid(pid),
          pid != self(),
          below <- below(pid, [supervisor, pid], 4),
          do: below

    if children != [], do: Enum.random(children)
  end

  defp below(_pid, _seen, 0), do: []

  defp below(pid, seen, depth) do
    case Process.info(pid, :links) do
      {:links, links} ->
        new = for link <- links, is_pid(link), link not in seen, do: link
        [pid | Enum.flat_map(new, &below(&1, seen ++ new, depth - 1))]

      nil ->
        []
    end
  end

  defp await(confirmed, handled, deadline) do
    missing = for {body} <- :ets.tab2list(confirmed), not :ets.member(handled, body), do: body

    if missing == [] or System.monotonic_time(:second) > deadline do
      missing
    else
      Process.sleep(200)
      await(confirmed, handled, deadline)
    end
  end

  defp counts,
    do: %{
      processes: length(Process.list()),
      ports: length(Port.list()),
      connections: Native.live_connections(),
      accounts: Native.live_accounts()
    }

  # What there is more of than before. A connection of the proxy may end a little later.
  defp left(before, attempts) do
    :erlang.garbage_collect()

    more =
      for {what, count} <- counts(),
          count > before[what],
          into: %{},
          do: {what, count - before[what]}

    if more == %{} or attempts == 0 do
      more
    else
      Process.sleep(100)
      left(before, attempts - 1)
    end
  end
end

[broker, kills, version, transport] = System.argv()
Chaos.run(broker, String.to_integer(kills), version, transport)
