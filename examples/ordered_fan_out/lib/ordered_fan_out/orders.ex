defmodule OrderedFanOut.Orders do
  @moduledoc """
  Gives each message to a worker, and acknowledges in the order of the queue.

  With `ack: :client` an acknowledgement covers all messages before it. So a message is only acknowledged
  when it and all before it are finished. `prefetch` limits the number of workers.
  """
  use Barytherium.Consumer, subscribe: {"/queue/orders", ack: :client, prefetch: 20}

  alias Barytherium.Client
  alias OrderedFanOut.{Work, Workers}

  # `pending` has the messages in the order of the queue, as `{task_reference | :finished, frame}`.
  @impl true
  def init(_arg), do: {:ok, %{client: nil, pending: []}}

  @impl true
  def handle_connected(info, state), do: {:ok, %{state | client: info.client}}

  @impl true
  def handle_message(frame, state) do
    IO.puts("arrived: #{frame.body}")
    task = Task.Supervisor.async_nolink(Workers, Work, :run, [frame.body])
    {:noreply, %{state | pending: state.pending ++ [{task.ref, frame}]}}
  end

  @impl true
  def handle_info({ref, :ok}, state) do
    Process.demonitor(ref, [:flush])
    finish(ref, state)
  end

  # The work has failed. The broker reads the copy before the acknowledgement, because both are written
  # to the same connection.
  def handle_info({:DOWN, ref, :process, _worker, _reason}, state) do
    {_ref, frame} = List.keyfind!(state.pending, ref, 0)
    Client.publish(state.client, "/queue/orders.failed", frame.body, receipt: false)
    IO.puts("failed: #{frame.body}")
    finish(ref, state)
  end

  defp finish(ref, state) do
    {_ref, frame} = List.keyfind!(state.pending, ref, 0)
    pending = List.keyreplace(state.pending, ref, 0, {:finished, frame})
    {finished, pending} = Enum.split_while(pending, &match?({:finished, _frame}, &1))
    if finished != [], do: acknowledge(List.last(finished), state.client)
    {:ok, %{state | pending: pending}}
  end

  defp acknowledge({:finished, frame}, client) do
    case Client.ack(client, frame) do
      :ok ->
        IO.puts("acknowledged up to: #{frame.body}")

      # The connection that it came on has ended.
      {:error, %Barytherium.Error{reason: :stale}} ->
        IO.puts("will be delivered again: #{frame.body}")
    end
  end
end
