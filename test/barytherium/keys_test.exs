defmodule Barytherium.KeysTest do
  @moduledoc "Several processes share the messages of a connection by a key: each key's are handled in their order."
  use Barytherium.ClientCase, async: true

  import Barytherium.ReceiverCase, only: [eventually: 1]

  alias Barytherium.{Consumer, TestBroker}

  @moduletag capture_log: true

  # Waits until the test says what to return.
  defmodule Waiting do
    use Barytherium.Consumer, handlers: 4, backoff: {10, 10}

    @impl true
    def init(test) do
      send(test, {:init, self()})
      {:ok, test}
    end

    @impl true
    def handle_connected(%{client: client}, test) do
      send(test, {:connected, self(), client})
      {:ok, test}
    end

    @impl true
    def handle_message(%{body: body} = frame, test) do
      send(test, {:handling, body, self(), frame})

      receive do
        {:return, result} ->
          if is_tuple(result), do: Tuple.append(result, test), else: {result, test}

        :raise ->
          raise "oh no"
      end
    end
  end

  # Its `init/1` fails in the second and third round of starts.
  defmodule Failing do
    use Barytherium.Consumer,
      subscribe: "/topic/a",
      handlers: 2,
      key: {:header, "k"},
      on_exception: :restart,
      backoff: {10, 10}

    @impl true
    def init({test, starts}) do
      if :atomics.add_get(starts, 1, 1) in 3..6, do: raise("no"), else: {:ok, test}
    end

    @impl true
    def handle_message(%{body: "raise"}, _test), do: raise("oh no")

    def handle_message(%{body: body}, test) do
      send(test, {:worked, body})
      {:ack, test}
    end
  end

  defmodule Batches do
    use Barytherium.Consumer, handlers: 2, key: {:header, "k"}

    @impl true
    def handle_batch(frames, test) do
      send(test, {:batch, self(), Enum.map(frames, & &1.body)})
      receive do: ({:return, result} -> {result, test})
    end
  end

  setup do
    Process.flag(:trap_exit, true)
    :ok
  end

  defp start(opts, connected \\ [{"version", "1.2"}]),
    do: start_consumer(Waiting, Keyword.merge([key: {:header, "k"}], opts), connected)

  defp handling(body) do
    assert_receive {:handling, ^body, worker, _frame}
    worker
  end

  defp keyed(peer, id, body, key) do
    ids = [{"subscription", id}, {"message-id", "m-#{body}"}, {"ack", "a-#{body}"}]
    reply(peer, :message, ids ++ [{"k", key}], body)
  end

  defp return(worker, result), do: send(worker, {:return, result})

  defp acknowledged(peer) do
    {%{"id" => "a-" <> body}, ""} = expect(peer, :ack)
    body
  end

  # Acknowledgements are written when all messages that came together are handled.
  defp acknowledged(peer, count), do: for(_message <- 1..count, do: acknowledged(peer))

  # Two keys that have different handlers, which a first message of each shows.
  defp two_keys(peer, id) do
    workers =
      for n <- 1..16, into: %{} do
        keyed(peer, id, "find #{n}", "key #{n}")
        {"key #{n}", handling("find #{n}") |> tap(&return(&1, :ack))}
      end

    for n <- 1..16, do: await_ack(peer, "find #{n}")
    assert workers |> Map.values() |> Enum.uniq() |> length() == 4
    {one, worker} = Enum.at(workers, 0)
    {other, _worker} = Enum.find(workers, fn {_key, another} -> another != worker end)
    {one, other}
  end

  # Acknowledgements of single messages; a cumulative one may stand for several.
  defp await_ack(peer, body),
    do: if(Process.get(:cumulative), do: :ok, else: acknowledged(peer) == body)

  test "messages of a key are handled by one process in order, and those of another key meanwhile" do
    {consumer, peer, id, _listener} = start(subscribe: "/queue/a")
    {one, other} = two_keys(peer, id)
    for n <- 1..3, do: keyed(peer, id, "one #{n}", one)
    for n <- 1..3, do: keyed(peer, id, "other #{n}", other)

    slow = handling("one 1")

    for n <- 1..3, do: return(handling("other #{n}"), :ack)
    assert acknowledged(peer, 3) == ["other 1", "other 2", "other 3"]

    for n <- 1..3 do
      if n > 1, do: assert(handling("one #{n}") == slow)
      refute_received {:handling, _next, _worker, _frame}
      return(slow, :ack)
    end

    assert acknowledged(peer, 3) == ["one 1", "one 2", "one 3"]

    stop_consumer(consumer, peer)
  end

  test "messages without the key belong together" do
    {consumer, peer, id, _listener} = start(subscribe: "/queue/a")
    for n <- 1..8, do: message(peer, id, "#{n}")
    worker = handling("1")

    for n <- 1..8 do
      if n > 1, do: assert(handling("#{n}") == worker)
      return(worker, :ack)
    end

    assert acknowledged(peer, 8) == for(n <- 1..8, do: "#{n}")

    stop_consumer(consumer, peer)
  end

  test "the key may be the destination" do
    {listener, url} = broker()
    destinations = for n <- 1..8, do: "/queue/#{n}"
    opts = [url: url, init_arg: self(), key: :destination, subscribe: destinations]
    {:ok, consumer} = Waiting.start_link(opts)
    peer = accept_connected(listener)

    ids =
      for _destination <- destinations do
        {%{"id" => id, "destination" => destination}, ""} = confirm(peer, :subscribe)
        {id, destination}
      end

    workers =
      for {id, destination} <- ids do
        for n <- 1..2,
            do: message(peer, id, "#{destination} #{n}", [{"destination", destination}])

        worker = handling("#{destination} 1")
        return(worker, :ack)
        assert handling("#{destination} 2") == worker
        return(worker, :ack)
        worker
      end

    assert workers |> Enum.uniq() |> length() > 1
    for _message <- 1..16, do: acknowledged(peer)
    stop_consumer(consumer, peer)
  end

  for what <- [:plain, :compressed, :large] do
    test "the key may be a part of the body, #{what}" do
      opts = [subscribe: "/queue/a", key: {:body, 5, 2}, inflate: true]
      {consumer, peer, id, _listener} = start(opts)

      # Some end before the key does.
      workers =
        for key <- ["aa", "bb", "cc", "dd", "ee", "ff", "g", ""] do
          for n <- 1..2 do
            ids = [{"subscription", id}, {"message-id", "#{n}"}, {"ack", "a-#{n}"}]
            reply(peer, :message, ids, compressed(unquote(what), "uid: " <> key))
          end

          assert_receive {:handling, "uid: " <> _one, worker, _frame}
          return(worker, :ack)
          assert_receive {:handling, "uid: " <> _two, ^worker, _frame}
          return(worker, :ack)
          for n <- 1..2, do: assert(acknowledged(peer) == "#{n}")
          worker
        end

      assert workers |> Enum.uniq() |> length() > 1
      stop_consumer(consumer, peer)
    end
  end

  defp compressed(:plain, text), do: text
  defp compressed(:compressed, text), do: :zlib.gzip(text)
  # More than is inflated at once.
  defp compressed(:large, text), do: :zlib.gzip([text, :binary.copy("x", 200_000)])

  describe "with ack: :client" do
    setup do
      Process.put(:cumulative, true)
      :ok
    end

    defp cumulative(connected \\ [{"version", "1.2"}]) do
      {consumer, peer, id, _listener} = start([subscribe: {"/queue/a", ack: :client}], connected)
      {one, other} = two_keys(peer, id)
      %{consumer: consumer, peer: peer, id: id, one: one, other: other}
    end

    # Reads acknowledgements up to that of `body`.
    defp through(peer, body, command \\ :ack, name \\ "id") do
      {headers, ""} = expect(peer, command)
      if headers[name] =~ ~r/#{body}\z/, do: :ok, else: through(peer, body, command, name)
    end

    test "an acknowledgement waits for the messages before it" do
      %{consumer: consumer, peer: peer, id: id, one: one, other: other} = cumulative()
      through(peer, "find 16")
      keyed(peer, id, "1", one)
      keyed(peer, id, "2", other)
      keyed(peer, id, "3", other)
      keyed(peer, id, "4", one)
      slow = handling("1")
      return(handling("2"), :ack)
      return(handling("3"), :ack)
      assert_silent(peer)
      return(slow, :ack)
      # One for all three.
      assert acknowledged(peer) == "3"
      return(handling("4"), :ack)
      assert acknowledged(peer) == "4"
      stop_consumer(consumer, peer)
    end

    test "so does a refusal, which covers no others" do
      %{consumer: consumer, peer: peer, id: id, one: one, other: other} = cumulative()
      through(peer, "find 16")

      for {body, key} <- [{"1", one}, {"2", other}, {"3", other}, {"4", one}],
          do: keyed(peer, id, body, key)

      slow = handling("1")
      return(handling("2"), {:nack, [{"why", "never"}]})
      return(handling("3"), :ack)
      assert_silent(peer)
      return(slow, :ack)
      assert acknowledged(peer) == "1"
      assert {%{"id" => "a-2", "why" => "never"}, ""} = expect(peer, :nack)
      assert acknowledged(peer) == "3"
      return(handling("4"), :ack)
      assert acknowledged(peer) == "4"
      stop_consumer(consumer, peer)
    end

    test "a message that its callback leaves holds up those after it, until it is acknowledged" do
      %{consumer: consumer, peer: peer, id: id, one: one, other: other} = cumulative()
      through(peer, "find 16")
      for {body, key} <- [{"1", one}, {"2", other}, {"3", one}], do: keyed(peer, id, body, key)
      assert_receive {:handling, "1", worker, frame}
      return(worker, :noreply)
      return(handling("2"), :ack)
      return(handling("3"), :ack)
      assert_silent(peer)
      assert_receive {:connected, _worker, client}
      assert Barytherium.Client.ack(client, frame) == :ok
      assert acknowledged(peer) == "3"
      # Deciding again changes nothing.
      assert Barytherium.Client.nack(client, frame) == :ok
      assert_silent(peer)
      stop_consumer(consumer, peer)
    end

    test "another process may acknowledge a message, and covers no others" do
      %{consumer: consumer, peer: peer, id: id, one: one, other: other} = cumulative()
      through(peer, "find 16")
      for {body, key} <- [{"1", one}, {"2", other}], do: keyed(peer, id, body, key)
      slow = handling("1")
      assert_receive {:handling, "2", quick, frame}
      return(quick, :noreply)
      assert_receive {:connected, _worker, client}
      assert Barytherium.Client.ack(client, frame) == :ok
      assert_silent(peer)
      return(slow, :ack)
      assert acknowledged(peer) == "2"

      # In a transaction it would have to cover them.
      test = self()

      aborted = fn transaction ->
        send(test, {:result, Barytherium.Client.ack(transaction, frame)})
        raise "abort"
      end

      assert_raise RuntimeError, fn -> Barytherium.Client.transaction(client, aborted) end
      assert_received {:result, {:error, %{reason: :unsupported}}}
      for command <- [:begin, :abort], do: expect(peer, command)
      stop_consumer(consumer, peer)
    end

    test "STOMP 1.0 is acknowledged in the same way" do
      %{consumer: consumer, peer: peer, id: id, one: one, other: other} =
        cumulative([{"version", "1.0"}])

      through(peer, "find 16", :ack, "message-id")
      for {body, key} <- [{"1", one}, {"2", other}], do: keyed(peer, id, body, key)
      slow = handling("1")
      return(handling("2"), :ack)
      assert_silent(peer)
      return(slow, :ack)
      assert {%{"message-id" => "m-2"}, ""} = expect(peer, :ack)
      stop_consumer(consumer, peer)
    end

    test "RabbitMQ is told of each message" do
      connected = [{"version", "1.2"}, {"server", "RabbitMQ/3.10.8"}]
      %{consumer: consumer, peer: peer, id: id, one: one, other: other} = cumulative(connected)
      for _message <- 1..16, do: expect(peer, :ack)
      for {body, key} <- [{"1", one}, {"2", other}, {"3", one}], do: keyed(peer, id, body, key)
      assert_receive {:handling, "1", worker, frame}
      return(worker, :noreply)
      return(handling("2"), :ack)
      return(handling("3"), :ack)
      assert Enum.sort(acknowledged(peer, 2)) == ["2", "3"]
      assert_receive {:connected, _worker, client}
      assert Barytherium.Client.ack(client, frame) == :ok
      assert acknowledged(peer) == "1"
      stop_consumer(consumer, peer)
    end

    test "a server of STOMP 1.0 need not say which subscription a message is for" do
      %{consumer: consumer, peer: peer, one: one, other: other} = cumulative([{"version", "1.0"}])
      through(peer, "find 16", :ack, "message-id")

      for {body, key} <- [{"1", one}, {"2", other}] do
        ids = [{"destination", "/queue/a"}, {"message-id", "m-#{body}"}, {"k", key}]
        reply(peer, :message, ids, body)
      end

      slow = handling("1")
      return(handling("2"), :ack)
      assert_silent(peer)
      return(slow, :ack)
      assert {%{"message-id" => "m-2"}, ""} = expect(peer, :ack)
      stop_consumer(consumer, peer)
    end

    test "another subscription of the consumer has its own mode" do
      {listener, url} = broker()
      subscribe = [{"/queue/a", ack: :client}, {"/topic/b", ack: :auto}, {"/queue/c", []}]
      opts = [url: url, init_arg: self(), key: {:header, "k"}, subscribe: subscribe]
      {:ok, _consumer} = Waiting.start_link(opts)
      peer = accept_connected(listener)
      [a, b, c] = for _n <- 1..3, do: confirm(peer, :subscribe) |> elem(0) |> Map.fetch!("id")
      keyed(peer, a, "a1", "1")
      keyed(peer, b, "b1", "1")
      keyed(peer, c, "c1", "1")
      return(handling("a1"), :noreply)
      return(handling("b1"), :ack)
      return(handling("c1"), :ack)
      # The one that is left holds up its own subscription only.
      assert acknowledged(peer) == "c1"
      keyed(peer, a, "a2", "2")
      return(handling("a2"), :ack)
      assert_silent(peer)
    end

    test "all messages of a batch are decided on" do
      {consumer, peer, id, _listener} =
        start_consumer(Batches, subscribe: {"/queue/a", ack: :client})

      for n <- 1..8, do: keyed(peer, id, "#{n}", "#{n}")
      finish_batches(8)
      assert through(peer, "8") == :ok
      stop_consumer(consumer, peer)
    end
  end

  defp finish_batches(0), do: :ok

  defp finish_batches(left) do
    assert_receive {:batch, worker, bodies}
    return(worker, :ack)
    finish_batches(left - length(bodies))
  end

  test "each of them has its own back-pressure" do
    {_consumer, peer, id, _listener} = start(subscribe: {"/queue/a", ack: :auto})
    all = for _n <- 1..4, do: assert_receive({:init, _pid}) |> elem(1)

    feed = fn ->
      for n <- 1..200_000, do: keyed(peer, id, "#{n}", "#{rem(n, 64)}")
    end

    flood = spawn(fn -> receive(do: (:go -> feed.())) end)
    # The socket stays this process's, which may write to it as well.
    send(flood, :go)
    queued = fn -> Enum.map(all, &(Process.info(&1, :message_queue_len) |> elem(1))) end
    eventually(fn -> Enum.any?(queued.(), &(&1 > 32)) end)
    for _look <- 1..20, do: assert(Enum.all?(queued.(), &(&1 <= 70)), inspect(queued.()))
    Process.exit(flood, :kill)
  end

  test "a worker whose init fails when it is started again does not end the consumer" do
    broker = start_supervised!(TestBroker)
    starts = :atomics.new(1, [])
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    {:ok, consumer} = Failing.start_link(url: url, init_arg: {self(), starts})
    TestBroker.await_subscription(broker, "/topic/a")
    TestBroker.publish(broker, "/topic/a", "raise")
    # Some connections are made and given up, because a worker has ended again.
    eventually(fn -> :atomics.get(starts, 1) >= 7 end)

    eventually(fn ->
      TestBroker.publish(broker, "/topic/a", "work")
      receive(do: ({:worked, "work"} -> true), after: (50 -> false))
    end)

    assert Process.alive?(consumer)
  end

  test "a process that crashes ends the connection, and all start again" do
    {consumer, peer, id, listener} = start(subscribe: "/queue/a", on_exception: :restart)
    first = for _n <- 1..4, do: assert_receive({:init, _pid}) |> elem(1)
    {one, other} = two_keys(peer, id)
    keyed(peer, id, "1", one)
    keyed(peer, id, "2", other)
    monitors = Enum.map(first, &Process.monitor/1)
    handling("2")
    send(handling("1"), :raise)
    for monitor <- monitors, do: assert_receive({:DOWN, ^monitor, :process, _pid, _reason})
    Peer.assert_closed(peer)

    peer = accept_connected(listener)
    {%{"id" => id}, ""} = confirm(peer, :subscribe)
    again = for _n <- 1..4, do: assert_receive({:init, _pid}) |> elem(1)
    assert again -- first == again
    keyed(peer, id, "1", one)
    return(handling("1"), :ack)
    assert acknowledged(peer) == "1"
    stop_consumer(consumer, peer)
  end

  test "a consumer that stops handles what has arrived in all of them" do
    {consumer, peer, id, _listener} = start(subscribe: "/queue/a")
    {one, other} = two_keys(peer, id)
    for n <- 1..2, key <- [one, other], do: keyed(peer, id, "#{key} #{n}", key)
    workers = for key <- [one, other], do: {key, handling("#{key} 1")}
    busy = for {_key, worker} <- workers, do: worker
    all = for _n <- 1..4, do: assert_receive({:init, _pid}) |> elem(1)
    monitors = Enum.map(all -- busy, &Process.monitor/1)
    stopping = Task.async(fn -> Supervisor.stop(consumer, :shutdown) end)
    # Those who have nothing to do end before the others.
    for monitor <- monitors, do: assert_receive({:DOWN, ^monitor, :process, _pid, :shutdown})

    for {key, worker} <- workers, n <- 1..2 do
      if n == 2, do: assert(handling("#{key} 2") == worker)
      return(worker, :ack)
    end

    acknowledged = acknowledged(peer, 4)
    for n <- 1..2, key <- [one, other], do: assert("#{key} #{n}" in acknowledged)
    disconnect(peer)
    Task.await(stopping)
  end

  test "mistakes are told" do
    for {opts, text} <- [
          {[key: "k"], "not {:header, name}, :destination or {:body, offset, length}"},
          {[key: {:header, ""}], "option :key"},
          {[key: {:body, -1, 2}], "option :key"},
          {[key: {:body, 0, 65_537}], "option :key"},
          {[key: :destination, concurrency: 2], "option :key: with :concurrency"},
          {[subscribe: {"/queue/a", ack: :client}], "with the option :key it waits for them"}
        ] do
      opts = Keyword.merge([url: "stomp://localhost", subscribe: "/queue/a"], opts)

      error =
        assert_raise ArgumentError, fn -> Consumer.start_link(Waiting, opts, handlers: 4) end

      assert Exception.message(error) =~ text
    end
  end
end
