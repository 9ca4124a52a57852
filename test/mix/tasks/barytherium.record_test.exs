defmodule Mix.Tasks.Barytherium.RecordTest do
  # What only an operating system process has: an end by SIGKILL.
  use ExUnit.Case, async: false

  alias Barytherium.{Directory, Recording, TestBroker}

  @moduletag :programs

  test "after a kill everything that was acknowledged is in the file, and the recording goes on" do
    path = Path.join(Directory.make!(), "feed.rec")
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}/queue/a"
    publisher = spawn_link(fn -> publish(broker, 1) end)

    for _round <- 1..2 do
      recorder = record(url, path)
      # Some are on their way to the file whenever it is killed.
      acked =
        for _ <- 1..500,
            do: TestBroker.assert_acked(broker, "/queue/a", fn _any -> true end, 30_000).body

      kill(recorder)
      bodies = bodies(path)
      assert acked -- bodies == []
    end

    send(publisher, {:stop, self()})
    assert_receive {:published, count}, 5_000
    recorder = record(url, path)
    TestBroker.await_acknowledgements(broker, "/queue/a", 30_000)
    kill(recorder)
    # None is missing. What was written, and not acknowledged before the kill, came again.
    assert path |> bodies() |> MapSet.new() == MapSet.new(1..count, &to_string/1)
  end

  defp publish(broker, number) do
    receive do
      {:stop, test} -> send(test, {:published, number - 1})
    after
      0 ->
        TestBroker.publish(broker, "/queue/a", "#{number}")
        if rem(number, 20) == 0, do: Process.sleep(10)
        publish(broker, number + 1)
    end
  end

  defp bodies(path),
    do: for({_time, %{command: :message, body: body}} <- Recording.stream(path), do: body)

  defp record(url, path) do
    options = [
      :binary,
      :exit_status,
      :stderr_to_stdout,
      args: ["barytherium.record", url, path],
      env: [{'MIX_ENV', 'test'}]
    ]

    Port.open({:spawn_executable, System.find_executable("mix")}, options)
  end

  defp kill(port) do
    {:os_pid, pid} = Port.info(port, :os_pid)
    {_output, 0} = System.cmd("kill", ["-KILL", to_string(pid)])
    assert_receive {^port, {:exit_status, 137}}, 10_000
  end
end
