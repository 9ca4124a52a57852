defmodule Barytherium.ClusterTest do
  @moduledoc """
  A publisher and four competing consumers on a quorum queue of a cluster of three RabbitMQ nodes, while
  nodes, connections and consumers fail. Run by `script/cluster`.
  """
  use ExUnit.Case, async: false

  alias Barytherium.Brokers.RabbitMQ
  alias Barytherium.{Broker, Client, Cluster, FaultProxy}

  @moduletag :cluster
  @moduletag capture_log: true
  @moduletag timeout: 1_200_000

  # Messages that are published at least, whatever happens in the meantime.
  @messages System.get_env("CLUSTER_MESSAGES", "20000") |> String.to_integer()

  @consumers 4
  @destination "/queue/orders"
  @queue [{"x-queue-type", "quorum"}, {"durable", "true"}, {"auto-delete", "false"}]

  # Messages that have to be handled after a fault before the next one.
  @progress 500

  # Milliseconds that a node is frozen, which is longer than its silence is tolerated.
  @frozen 8_000

  # Counts what it sees, by the number of the message and of the attempt to publish it.
  defmodule Consumer do
    use Barytherium.Consumer

    @impl true
    def handle_message(frame, table) do
      seen = :ets.update_counter(table, {:seen, frame.body}, 1, {{:seen, frame.body}, 0})
      again = {"redelivered", "true"} in frame.headers
      count(table, :handled)
      if seen > 1, do: count(table, if(again, do: :redelivered, else: :unmarked))
      {:ack, table}
    end

    @impl true
    def handle_disconnected(_reason, table) do
      count(table, :disconnects)
      {:ok, table}
    end

    def count(table, what), do: :ets.update_counter(table, what, 1, {what, 0})
  end

  setup_all do
    if missing = RabbitMQ.missing(), do: raise(missing)
    nodes = Cluster.start!(3)
    on_exit(fn -> Cluster.stop(nodes) end)
    proxies = for node <- nodes, do: FaultProxy.start!(node.port)
    %{nodes: nodes, proxies: proxies}
  end

  test "nothing that was confirmed is lost, and what comes twice is marked", context do
    table = :ets.new(:seen, [:public, write_concurrency: true])
    urls = for {_proxy, port} <- context.proxies, do: "stomp://guest:guest@127.0.0.1:#{port}"
    opts = [urls: urls, shuffle: true, backoff: {100, 1_000}, heart_beat: {2_000, 2_000}]
    publisher = start_supervised!({Client, opts})
    subscribe = {@destination, prefetch: 100, headers: @queue}
    own = [subscribe: subscribe, init_arg: table, concurrency: @consumers]
    consumer = start_supervised!({Consumer, own ++ opts})
    publishing = Task.async(fn -> publish(publisher, table, 1, []) end)
    progress(table)

    for index <- 0..2 do
      fault("killing node #{index}", table, fn -> Broker.kill(Enum.at(context.nodes, index)) end)

      fault("starting it again", table, fn ->
        Broker.start_again!(Enum.at(context.nodes, index))
      end)
    end

    nodes = for node <- context.nodes, do: %{node | pid: RabbitMQ.pid(nil, node.directory)}
    on_exit(fn -> Cluster.stop(nodes) end)

    for {node, index} <- Enum.with_index(nodes) do
      fault("freezing node #{index}", table, fn ->
        Broker.signal(node, "STOP")
        Process.sleep(@frozen)
        Broker.signal(node, "CONT")
      end)
    end

    for _round <- 1..5 do
      fault("resetting all connections", table, fn ->
        for {proxy, _port} <- context.proxies,
            do: FaultProxy.set(proxy, {:reset_after, :rand.uniform(50_000)})
      end)
    end

    for _round <- 1..20 do
      fault("killing a consumer", table, fn ->
        Process.exit(Enum.random(Barytherium.Consumer.clients(consumer)), :kill)
        # The supervisor allows 12 restarts in 5 s.
        Process.sleep(450)
      end)
    end

    await(fn -> value(table, :published) >= @messages end, 600_000)
    send(publishing.pid, :stop)
    confirmed = Task.await(publishing, 60_000)
    await(fn -> Enum.all?(confirmed, &:ets.member(table, {:seen, &1})) end, 60_000)
    report(table, confirmed)
    assert length(confirmed) >= @messages
    assert value(table, :unmarked) == 0
  end

  # Returns the bodies that were confirmed.
  defp publish(publisher, table, number, confirmed) do
    bodies = for n <- number..(number + 255), do: "#{n}"
    confirmed = publish_chunk(publisher, table, bodies, 1, confirmed)

    receive do
      :stop -> confirmed
    after
      0 -> publish(publisher, table, number + 256, confirmed)
    end
  end

  # Each attempt has a body of its own, because the broker may have got the one before it.
  defp publish_chunk(publisher, table, numbers, attempt, confirmed) do
    messages = for number <- numbers, do: {@destination, "#{number}.#{attempt}", @queue}
    result = Client.publish_many(publisher, messages, wait: true, timeout: 10_000)
    left = if result == :ok, do: [], else: elem(result, 2)
    bodies = for {_destination, body, _headers} <- messages -- left, do: body
    :ets.update_counter(table, :published, length(bodies), {:published, 0})
    confirmed = bodies ++ confirmed

    if left == [] do
      confirmed
    else
      :ets.update_counter(table, :unconfirmed, length(left), {:unconfirmed, 0})
      numbers = for {_destination, body, _headers} <- left, do: body |> String.split(".") |> hd()
      publish_chunk(publisher, table, numbers, attempt + 1, confirmed)
    end
  end

  defp fault(name, table, make) do
    started = System.monotonic_time(:millisecond)
    make.()
    made = System.monotonic_time(:millisecond)
    progress(table)
    done = System.monotonic_time(:millisecond)

    IO.puts(
      "#{String.pad_trailing(name, 26)} took #{made - started} ms, and going on #{done - made} ms"
    )
  end

  # Waits until messages are published and handled again.
  defp progress(table) do
    for what <- [:published, :handled] do
      wanted = value(table, what) + @progress
      await(fn -> value(table, what) >= wanted end, 120_000)
    end
  end

  defp value(table, what) do
    case :ets.lookup(table, what) do
      [{^what, value}] -> value
      [] -> 0
    end
  end

  defp await(condition, left) do
    cond do
      condition.() -> :ok
      left > 0 -> Process.sleep(20) && await(condition, left - 20)
      true -> flunk("it did not come to pass")
    end
  end

  defp report(table, confirmed) do
    names = [:handled, :redelivered, :unmarked, :unconfirmed, :disconnects]
    counts = for name <- names, do: "#{value(table, name)} #{name}"
    IO.puts("#{length(confirmed)} confirmed, all of them handled; #{Enum.join(counts, ", ")}")
  end
end
