defmodule Barytherium.RecordTest do
  # It changes the level of the log and the handling of signals, and captures stderr.
  use ExUnit.Case, async: false

  import Barytherium.ClientCase, only: [receive_messages: 2]
  import Barytherium.ReceiverCase, only: [eventually: 1]
  import ExUnit.CaptureIO

  alias Barytherium.{Client, Directory, Frame, Record, Recording, Replay, TestBroker}

  setup do
    %{level: level} = :logger.get_primary_config()
    on_exit(fn -> :logger.set_primary_config(:level, level) end)
    %{path: Path.join(Directory.make!(), "feed.rec")}
  end

  defp url(broker, destination),
    do: "stomp://me:secret-word@127.0.0.1:#{TestBroker.port(broker)}#{destination}"

  # Runs a program while `work` runs: `{status, stderr}`.
  defp run(program, args, work \\ fn -> :ok end) do
    with_io(:stderr, fn ->
      running = Task.async(fn -> program.run(args, "test") end)
      work.()
      Task.await(running, 20_000)
    end)
  end

  defp read(path), do: path |> Recording.stream() |> Enum.map(&elem(&1, 1))
  defp messages(frames), do: Enum.filter(frames, &(&1.command == :message))
  defp bodies(frames), do: for(%{body: body} <- messages(frames), do: body)

  test "a topic is recorded, with what came and without the password", %{path: path} do
    broker = start_supervised!({TestBroker, like: :rabbitmq})
    all = for byte <- 0..255, into: "", do: <<byte>>

    {0, stderr} =
      run(Record, [url(broker, "/topic/a"), path, "--count", "2"], fn ->
        TestBroker.await_subscription(broker, "/topic/a")
        TestBroker.publish(broker, "/topic/a", all, [{"x", "a:b\n"}, {"x", "again"}])
        TestBroker.publish(broker, "/topic/a", "second")
      end)

    assert [%Frame{command: :connected} = connected, subscribe, first, second] = read(path)

    assert subscribe == %Frame{
             command: :subscribe,
             headers: [{"destination", "/topic/a"}],
             body: ""
           }

    assert Frame.header(connected, "server") =~ "RabbitMQ"
    assert first.body == all and second.body == "second"
    assert for({"x", value} <- first.headers, do: value) == ["a:b\n", "again"]
    assert stderr =~ "recording /topic/a of RabbitMQ"
    assert stderr =~ "2 messages, 262 B of bodies"
    refute File.read!(path) =~ "secret-word"
    refute stderr =~ "secret-word"

    [{one, _}, {other, _} | _] = Enum.to_list(Recording.stream(path))
    assert other >= one and abs(System.system_time(:microsecond) - one) < 60_000_000
  end

  test "a queue's messages are removed when they are in the file, and a lost connection is made again",
       %{path: path} do
    broker = start_supervised!(TestBroker)
    for n <- 1..3, do: TestBroker.publish(broker, "/queue/a", "#{n}")

    {0, stderr} =
      run(Record, [url(broker, "/queue/a"), path, "--count", "5"], fn ->
        for n <- 1..3, do: TestBroker.assert_acked(broker, "/queue/a", "#{n}")
        assert bodies(read(path)) == ["1", "2", "3"]
        TestBroker.fault(broker, :close)
        for n <- 4..5, do: TestBroker.publish(broker, "/queue/a", "#{n}")
      end)

    assert bodies(read(path)) == ["1", "2", "3", "4", "5"]
    assert stderr =~ "disconnected"
    assert stderr =~ "connected again"
    assert Enum.count(read(path), &(&1.command == :connected)) == 2

    # A recording is continued.
    TestBroker.publish(broker, "/queue/a", "6")
    assert {0, _} = run(Record, [url(broker, "/queue/a"), path, "--count", "1"])
    assert bodies(read(path)) == ["1", "2", "3", "4", "5", "6"]
  end

  test "a recording is played to a client, frame by frame as it came", %{path: path} do
    broker = start_supervised!({TestBroker, like: :activemq}, id: :live)

    {0, _} =
      run(Record, [url(broker, "/topic/a"), path, "--count", "300"], fn ->
        TestBroker.await_subscription(broker, "/topic/a")
        for n <- 1..300, do: TestBroker.publish(broker, "/topic/a", "#{n}", [{"n", "#{n}"}])
      end)

    replay = start_supervised!({TestBroker, replay: path}, id: :replay)
    client = start_supervised!({Client, url: url(replay, ""), listener: self()})
    assert_receive {:barytherium, :client, {{:connected, %{server: "ActiveMQ/" <> _}}, _client}}
    {:ok, subscription} = Client.subscribe(client, "/topic/a", ack: :client_individual)
    frames = receive_messages(subscription, 300)
    :ok = Client.ack(client, frames)

    assert Enum.map(frames, &without_subscription/1) ==
             path |> read() |> messages() |> Enum.map(&without_subscription/1)

    # Other destinations are queues and topics as ever.
    {:ok, other} = Client.subscribe(client, "/queue/b", ack: :auto)
    :ok = Client.publish(client, "/queue/b", "live", wait: true)
    assert [%Frame{body: "live"}] = receive_messages(other, 1)
  end

  defp without_subscription(%Frame{headers: headers} = frame),
    do: %{frame | headers: List.keydelete(headers, "subscription", 0)}

  defp record_times(path, times) do
    {:ok, writer} = Recording.Writer.open(path, 1_000_000)

    entries =
      for time <- times do
        headers = [{"subscription", "s"}, {"message-id", "#{time}"}, {"destination", "/topic/a"}]
        {time, %Frame{command: :message, headers: headers, body: "#{time}"}}
      end

    {:ok, writer} = Recording.Writer.append(writer, entries)
    Recording.Writer.close(writer)
  end

  defp play(path, opts) do
    replay = start_supervised!({TestBroker, [replay: path] ++ opts})
    client = start_supervised!({Client, url: url(replay, "")})
    {:ok, subscription} = Client.subscribe(client, "/topic/a", ack: :auto)
    subscription
  end

  test "it is played from a time on, and no faster than it is told", %{path: path} do
    start = 1_700_000_000_000_000
    record_times(path, for(n <- 0..4, do: start + n * 200_000))
    subscription = play(path, speed: 2, from: DateTime.from_unix!(start + 200_000, :microsecond))
    [first] = receive_messages(subscription, 1)
    assert first.body == "#{start + 200_000}"
    started = System.monotonic_time(:millisecond)
    assert length(receive_messages(subscription, 3)) == 3
    # 600 ms at twice the speed. What is first received may have been late.
    assert System.monotonic_time(:millisecond) - started >= 200
  end

  test "a subscription that ends stops it", %{path: path} do
    record_times(path, [1, 2, 3, 50_000, 100_000])
    replay = start_supervised!({TestBroker, replay: path, speed: 1})
    client = start_supervised!({Client, url: url(replay, "")})
    {:ok, subscription} = Client.subscribe(client, "/topic/a", ack: :auto)
    receive_messages(subscription, 3)
    :ok = Client.unsubscribe(client, subscription)
    # From the beginning again.
    {:ok, again} = Client.subscribe(client, "/topic/a", ack: :auto)
    assert for(frame <- receive_messages(again, 5), do: frame.body) == ~w(1 2 3 50000 100000)
  end

  test "the program plays until it is ended", %{path: path} do
    record_times(path, [1_700_000_000_000_000])
    port = Barytherium.Broker.free_port()

    {status, stderr} =
      run(Replay, [path, "--port", "#{port}", "--speed", "max"], fn ->
        client = start_supervised!({Client, url: "stomp://127.0.0.1:#{port}", backoff: {10, 10}})
        {:ok, subscription} = Client.subscribe(client, "/topic/a", ack: :auto)
        assert [%Frame{body: "1700000000000000"}] = receive_messages(subscription, 1)
        :gen_event.notify(:erl_signal_server, :sigterm)
      end)

    assert status == 143

    assert stderr =~
             "stomp://127.0.0.1:#{port}/topic/a plays #{path} from 2023-11-14 22:13:20Z on"
  end

  test "a recording is played by the name that was subscribed to, too, and to nobody else", %{
    path: path
  } do
    {:ok, writer} = Recording.Writer.open(path, 1_000_000)
    headers = &[{"subscription", "s"}, {"message-id", &1}, {"destination", &1}]

    frames = [
      %Frame{command: :connected, headers: [{"server", "RabbitMQ/3.10.8"}]},
      %Frame{command: :subscribe, headers: [{"destination", "/topic/a.*"}]},
      %Frame{command: :message, headers: headers.("/topic/a.1"), body: "1"},
      %Frame{command: :message, headers: headers.("/topic/a.2"), body: "2"}
    ]

    {:ok, writer} =
      Recording.Writer.append(writer, Enum.with_index(frames, &{1_000_000 + &2, &1}))

    Recording.Writer.close(writer)
    # Also from a time on that is after the SUBSCRIBE.
    from = DateTime.from_unix!(1_000_002, :microsecond)
    replay = start_supervised!({TestBroker, replay: path, from: from})
    client = start_supervised!({Client, url: url(replay, "")})

    for {destination, bodies} <- [
          {"/topic/a.*", ["1", "2"]},
          {"/topic/a.2", ["2"]},
          {"/topic/b", []}
        ] do
      {:ok, subscription} = Client.subscribe(client, destination, ack: :auto)

      assert for(frame <- receive_messages(subscription, length(bodies)), do: frame.body) ==
               bodies
    end

    refute_receive {:barytherium, :messages, _more}, 50
    assert Client.status(client).server =~ "RabbitMQ"
  end

  test "what plays it ends with the connection, and nothing comes after the end of a subscription",
       %{path: path} do
    hour = 3_600_000_000
    record_times(path, [1, 2, hour])
    replay = start_supervised!({TestBroker, replay: path, speed: 1})
    client = start_supervised!({Client, url: url(replay, "")}, id: :client)
    {:ok, subscription} = Client.subscribe(client, "/topic/a", ack: :auto)
    receive_messages(subscription, 2)
    [connection] = :sys.get_state(replay).connections
    [player] = Map.values(:sys.get_state(connection).fed)
    monitor = Process.monitor(player)
    stop_supervised!(:client)
    assert_receive {:DOWN, ^monitor, :process, ^player, _reason}, 5_000
    # A stale player's messages are not written.
    assert catch_exit(GenServer.call(connection, {:play, "1", []}))
  end

  test "it goes on until its time is over, in files of the size that is asked for", %{
    path: path
  } do
    broker = start_supervised!(TestBroker)
    body = String.duplicate("x", 600_000)

    {0, stderr} =
      run(
        Record,
        [
          url(broker, "/topic/a"),
          path,
          "--seconds",
          "1",
          "--file-size",
          "1"
        ],
        fn ->
          TestBroker.await_subscription(broker, "/topic/a")

          for n <- 1..4 do
            TestBroker.publish(broker, "/topic/a", body)
            eventually(fn -> length(messages(read(path))) >= n end)
          end
        end
      )

    assert stderr =~ "4 messages"
    assert [_, _] = Recording.parts(path)
  end

  test "mistakes are told", %{path: path} do
    File.write!(path, "something else")
    broker = start_supervised!(TestBroker)

    for {program, args, status, text} <- [
          {Record, [], 2, "the first argument is not a URL"},
          {Record, ["stomp://127.0.0.1", path], 2, "no destination"},
          {Record, ["stomp://127.0.0.1/topic/a"], 2, "a URL and one FILE"},
          {Record, ["stomp://127.0.0.1/topic/a", path, "--count", "0"], 2, "--count cannot be 0"},
          {Record, [url(broker, "/topic/a"), path], 1, "it exists, and is no recording"},
          {Record, [url(broker, "/topic/a"), "/no/such/file"], 1, "no such file or directory"},
          {Record, ["stomp://127.0.0.1:1/topic/a", path <> ".new"], 1, "cannot connect"},
          {Record, ["stomp://127.0.0.1/topic/a", "stomp://me:secret@h/b"], 2,
           "a URL and one FILE"},
          {Record, [url(broker, "/topic/a"), path <> ".new", "--file-size", "0"], 2,
           "--file-size cannot be 0"},
          {Replay, [], 2, "one FILE"},
          {Replay, [path], 1, "no recording"},
          {Replay, ["/no/such/file"], 1, "no such file or directory"},
          {Replay, [path, "--speed", "0"], 2, "--speed is a number above 0, or max"},
          {Replay, [path, "--from", "now"], 2, "2026-11-28T08:00:00Z"}
        ] do
      assert {^status, stderr} = run(program, args)
      assert stderr =~ text
    end

    # A connection that was never made has left no file.
    refute File.exists?(path <> ".new")
    assert TestBroker.start_link(replay: path) == {:error, {:replay, :not_a_recording}}
    assert File.read!(path) == "something else"
  end
end
