defmodule Barytherium.TestBroker.Replay do
  @moduledoc false
  # Plays a recording to one subscription, in a process that ends with the connection. A message goes to a subscription
  # of its destination.

  alias Barytherium.{Frame, Recording}
  alias Barytherium.TestBroker.Session

  # Messages that are handed to the connection together, if it is to be as fast as it can.
  @together 256

  # Milliseconds of one timer: a day. The VM's longest has 49, and a recording may have been continued later.
  @longest 86_400_000

  @typedoc "How many times as fast as it was, or `:infinity`, without waiting."
  @type speed :: pos_integer() | float() | :infinity
  @type options :: %{path: Path.t(), speed: speed(), from: DateTime.t() | Recording.time()}

  @doc "The broker that the recording is from, if it is one that can be imitated."
  @spec like(Path.t()) :: Session.like()
  def like(path) do
    case first(path, :connected, "server") do
      "RabbitMQ" <> _version -> :rabbitmq
      "ActiveMQ/" <> _version -> :activemq
      _other -> nil
    end
  end

  # A header of the first frame of this command, which is one of the first two, or nil.
  defp first(path, command, header) do
    beginning = path |> Recording.stream() |> Enum.take(2)

    for({_time, %Frame{command: ^command} = frame} <- beginning, do: Frame.header(frame, header))
    |> List.first()
  end

  @doc "Plays to the subscription `id` of the connection that calls this. `write` gets its messages."
  @spec start(binary(), binary(), options(), ([Session.action()] -> :ok)) :: pid()
  def start(id, destination, options, write),
    do: spawn_link(fn -> play(write, id, destination, options) end)

  @spec stop(pid()) :: true
  def stop(replay) do
    Process.unlink(replay)
    Process.exit(replay, :kill)
  end

  defp play(write, id, destination, %{path: path, from: from, speed: speed}) do
    path
    |> Recording.stream(from)
    |> Stream.transform(first(path, :subscribe, "destination"), &wanted(&1, &2, destination))
    |> Stream.chunk_every(if(speed == :infinity, do: @together, else: 1))
    |> Enum.reduce(nil, fn [{time, _frame} | _] = entries, clock ->
      clock = clock || {time, System.monotonic_time(:microsecond)}
      await(time, clock, speed)
      :ok = write.(for({_time, frame} <- entries, do: action(frame, id)))
      clock
    end)
  end

  # A message belongs to the destination that it names, and to the one that was subscribed to when it was recorded,
  # which may have a wildcard.
  defp wanted({_time, %Frame{command: :subscribe} = frame}, _subscribed, _destination),
    do: {[], Frame.header(frame, "destination")}

  defp wanted({_time, %Frame{command: :message} = frame} = entry, subscribed, destination) do
    wanted? = destination in [subscribed, Frame.header(frame, "destination")]
    {if(wanted?, do: [entry], else: []), subscribed}
  end

  defp wanted(_connected, subscribed, _destination), do: {[], subscribed}

  defp await(_time, _clock, :infinity), do: :ok

  defp await(time, {first, started} = clock, speed) do
    due = started + round((time - first) / speed)
    left = div(due - System.monotonic_time(:microsecond), 1_000)

    # A timer is not early, and up to a millisecond late.
    if left > @longest do
      Process.sleep(@longest)
      await(time, clock, speed)
    else
      Process.sleep(max(left, 0))
    end
  end

  defp action(%Frame{headers: headers} = frame, id) do
    headers = List.keyreplace(headers, "subscription", 0, {"subscription", id})
    {:frame, :message, headers, frame.body}
  end
end
