defmodule OffBroadway.Barytherium.Acknowledger do
  @moduledoc false
  # The reference is the client. The data are the frame without its body, and what is to be done with it.
  @behaviour Broadway.Acknowledger

  require Logger

  alias Barytherium.Client

  @defaults %{on_success: :ack, on_failure: :nack}

  @doc "The names of the options of `configure!/2`."
  @spec options() :: [atom()]
  def options, do: Map.keys(@defaults)

  @doc "Adds options to the data. Raises `ArgumentError` for invalid ones."
  @spec configure!(map(), keyword()) :: map()
  def configure!(data, options) do
    for {name, value} <- options do
      unless name in options() and action?(value) do
        raise ArgumentError,
              "#{inspect({name, value})}: the options are :on_success and :on_failure, with " <>
                ":ack, :nack, {:nack, headers} or :noop"
      end
    end

    @defaults |> Map.merge(data) |> Map.merge(Map.new(options))
  end

  defp action?({:nack, headers}), do: is_list(headers)
  defp action?(action), do: action in [:ack, :nack, :noop]

  @impl true
  def configure(_client, data, options), do: {:ok, configure!(data, options)}

  @impl true
  def ack(client, successful, failed) do
    # Messages of an earlier connection are refused together, so those of each connection go by
    # themselves. Each connection has its own subscription ids.
    (todo(successful, :on_success) ++ todo(failed, :on_failure))
    |> Enum.group_by(fn {action, frame} -> {action, subscription(frame)} end, &elem(&1, 1))
    |> Enum.each(fn {{action, _id}, frames} -> carry_out(action, client, frames) end)
  end

  defp todo(messages, outcome) do
    for %{acknowledger: {_module, _client, data}} <- messages,
        data[outcome] != :noop,
        do: {data[outcome], data.frame}
  end

  defp subscription(frame), do: List.keyfind(frame.headers, "subscription", 0)

  defp carry_out(action, client, frames) do
    case write(action, client, frames) do
      :ok ->
        :ok

      # The broker delivers these again.
      {:error, %Barytherium.Error{reason: :stale}} ->
        :ok

      {:error, error} ->
        Logger.warning("messages were not acknowledged: #{Exception.message(error)}")
    end
  rescue
    # The broker has left out the header to acknowledge by.
    error in ArgumentError -> Logger.warning(Exception.message(error))
  catch
    # The client has ended, and so has its producer.
    :exit, _reason -> :ok
  end

  defp write(:ack, client, frames), do: Client.ack(client, frames)
  defp write(:nack, client, frames), do: Client.nack(client, frames)
  defp write({:nack, headers}, client, frames), do: Client.nack(client, frames, headers)
end
