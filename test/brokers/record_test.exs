# What a real broker sends is recorded, and played as it came.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat(kind, RecordTest) do
    use Barytherium.BrokerCase, async: false, broker: kind

    import Barytherium.ReceiverCase, only: [eventually: 1]
    import ExUnit.CaptureIO

    alias Barytherium.{Directory, Record, Recording, TestBroker}

    @all for byte <- 0..255, into: "", do: <<byte>>
    # What differs for each subscription.
    @own ["subscription", "message-id", "ack"]

    test "frames are identical after recording and playing", %{broker: broker} do
      path = Path.join(Directory.make!(), "feed.rec")
      {sender, _connected} = connected(broker)
      subscribe(sender, "/topic/recorded")
      url = "stomp://guest:guest@127.0.0.1:#{broker.port}/topic/recorded"

      {came, stderr} =
        with_io(:stderr, fn ->
          recording = Task.async(fn -> Record.run([url, path], "record") end)
          await_recording(sender, path)
          for {headers, body} <- messages(), do: send_to_topic(sender, headers, body)
          came = messages(length(messages()), [])
          eventually(fn -> length(recorded(path)) == length(came) end)
          :gen_event.notify(:erl_signal_server, :sigterm)
          assert Task.await(recording, 20_000) == 143
          came
        end)

      refute stderr =~ "Error"
      recorded = recorded(path)
      assert plain(recorded) == plain(came)

      replay = start_supervised!({TestBroker, replay: path})
      {sender, connected} = connected(%{port: TestBroker.port(replay)})
      assert header(connected, "server") =~ ~r"^(RabbitMQ|ActiveMQ)/"
      subscribe(sender, "/topic/recorded", [{"ack", "client-individual"}])
      played = messages(length(recorded), [])
      without = &%{&1 | headers: List.keydelete(&1.headers, "subscription", 0)}
      assert Enum.map(played, without) == Enum.map(recorded, without)
    end

    defp messages do
      large = :binary.copy(@all, 4 * 1024)

      [
        {[{"x", "grüß 日本"}, {"y", "a:b\nc\\"}], @all},
        {[], ""},
        {[{"persistent", "true"}], "text"},
        {[], <<0, 0, 10, 0>>},
        {[{"content-type", "application/gzip"}], :zlib.gzip(@all)},
        {[], large}
      ]
    end

    # The recorder is subscribed when a message gets into the file.
    defp await_recording(sender, path) do
      send_to_topic(sender, [], "ready")
      frames()
      ready? = fn {_time, frame} -> frame.body == "ready" end

      # The file is there before what it begins with.
      unless Recording.check(path) == :ok and Enum.any?(Recording.stream(path), ready?),
        do: await_recording(sender, path)
    end

    defp recorded(path) do
      for {_time, %{command: :message} = frame} <- Recording.stream(path),
          frame.body != "ready",
          do: frame
    end

    defp send_to_topic(sender, headers, body) do
      headers = [{"destination", "/topic/recorded"} | headers]
      Sender.write(sender, [%Frame{command: :send, headers: headers, body: body}])
    end

    defp messages(0, frames), do: frames

    defp messages(count, frames) do
      new = Enum.filter(frames(), &(&1.command == :message and &1.body != "ready"))
      messages(count - length(new), frames ++ new)
    end

    defp plain(frames) do
      for frame <- frames do
        headers = Enum.reject(frame.headers, fn {name, _value} -> name in @own end)
        %{frame | headers: headers}
      end
    end
  end
end
