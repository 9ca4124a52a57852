defmodule Barytherium.Client.Routing do
  @moduledoc false
  # Which process gets the messages of a subscription. The receive loop sends them there (see
  # `Barytherium.Native.put_route/5`); what has no route comes to the client. The functions run in the
  # client, and take its data.

  alias Barytherium.Client.{Acknowledgements, Events, Handlers, Session}
  alias Barytherium.Frame
  alias Barytherium.Native

  @doc "To be called before SUBSCRIBE is written, so that every message has its route."
  @spec put(Session.subscription(), map()) :: :ok
  def put(subscription, %{handlers: %Handlers{pid: pid}} = data) when pid != nil,
    # The consumer's process knows by the sender which connection a message is from.
    do: put(subscription, pid, data.sender, false, data)

  def put(%{number: number} = subscription, data) do
    with %{target: target} when is_pid(target) <- data.subscriptions[number],
         do: put(subscription, target, {self(), number}, true, data)

    :ok
  end

  defp put(subscription, pid, origin, kept?, %{session: session} = data) do
    noted =
      Acknowledgements.noted(session, session.modes[Session.id(session, subscription)], kept?)

    for key <- Session.keys(session, subscription),
        do: Native.put_route(data.routes, key, pid, origin, noted)

    :ok
  end

  @spec delete(Session.subscription(), map()) :: :ok
  def delete(_subscription, %{session: nil}), do: :ok

  def delete(subscription, data) do
    for key <- Session.keys(data.session, subscription),
        do: Native.delete_route(data.routes, key)

    :ok
  end

  @doc """
  Whether somebody waits for a receipt. It may come behind messages that their process does not take, so the
  receive loop reads on then, up to 8 times the usual limit.
  """
  @spec urgent(boolean(), map()) :: :ok
  def urgent(_urgent, %{routes: nil}), do: :ok
  def urgent(urgent, %{routes: routes}), do: Native.set_urgent(routes, urgent)

  @doc "A message that has no route."
  @spec unexpected(Frame.t(), map()) :: :ok
  def unexpected(frame, data) do
    # Otherwise its subscription has ended. The broker delivers it again to another subscriber.
    if data.session == nil or Session.number(data.session, frame) == nil,
      do: Events.unexpected(frame, data),
      else: :ok
  end

  @doc """
  The process that gets the messages of a subscriber: itself, or on another node, which native code cannot reach,
  a process that sends them on. If that node does not read, only this process waits.
  """
  @spec target(pid()) :: pid()
  def target(subscriber) when node(subscriber) == node(), do: subscriber

  def target(subscriber) do
    client = self()

    spawn(fn ->
      Process.monitor(client)
      Process.monitor(subscriber)
      relay(subscriber)
    end)
  end

  defp relay(subscriber) do
    receive do
      {:barytherium, :messages, _messages} = message ->
        send(subscriber, message)
        relay(subscriber)

      # After everything that came before.
      {:DOWN, _monitor, :process, _pid, _reason} ->
        :ok

      :stop ->
        :ok
    end
  end

  @doc "The subscription has ended."
  @spec end_target(map()) :: :ok
  def end_target(%{pid: pid, target: target}) do
    if target != pid, do: send(target, :stop)
    :ok
  end
end
